"""What a run proves, and what it must not be said to prove."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep.core import Decision
from lockstep.dashboard.facts import Facts, Parity
from lockstep.errors import InputError
from lockstep.trace import RunDirectory

Line = Callable[..., dict[str, Any]]
Run = Callable[..., RunDirectory]


def test_parity_is_the_sum_over_all_steps(make_line: Line) -> None:
    found = Parity.of([make_line(1, **{"parity/num_tokens": 100}), make_line(2, **{"parity/num_tokens": 50})])
    assert found.exact and found.tokens == 150 and found.worst == 0.0


@pytest.mark.parametrize(
    ("changes", "differing", "unmeasured"),
    [
        ({"parity/max": 1e-9}, (2,), ()),
        ({"parity/max": math.nan}, (2,), ()),
        ({"parity/frac_differing": 0.01}, (2,), ()),
        ({"parity/num_tokens": 0}, (), (2,)),
        ({"parity/num_tokens": math.nan}, (), (2,)),
        ({"parity/max": None}, (), (2,)),
    ],
)
def test_one_bad_step_is_enough(
    make_line: Line, changes: dict[str, Any], differing: tuple[int, ...], unmeasured: tuple[int, ...]
) -> None:
    found = Parity.of([make_line(1), make_line(2, **changes), make_line(3)])
    assert not found.exact and found.differing == differing and found.unmeasured == unmeasured
    assert math.isnan(found.worst) == bool(changes.get("parity/max") and math.isnan(changes["parity/max"]))


def test_no_steps_prove_nothing() -> None:
    assert not Parity.of([]).exact


def test_a_finished_run(tmp_path: Path, make_run: Run) -> None:
    facts = Facts.of(make_run(tmp_path / "add", steps=12))
    tokens = sum(int(line["parity/num_tokens"]) for line in facts.lines)
    assert facts.name == "add" and facts.standing == "proved"
    assert facts.headline == f"Parity exactly 0.0 over {tokens:,} tokens"
    assert "in all 12 steps" in facts.explanation and facts.outcome == "finished, 12 of 12 steps"
    assert [(a.step, a.value, a.tasks) for a in facts.accuracies] == [(0, 0.15, 80), (12, 0.7125, 80)]
    low, high = facts.accuracies[1].interval or (0, 0)
    assert low == pytest.approx(0.6054, abs=1e-3) and high == pytest.approx(0.8, abs=1e-3)
    assert facts.seconds == pytest.approx(sum(line["time/step"] for line in facts.lines))
    assert facts.latest("reward") == facts.lines[-1]["reward"] and facts.latest("unknown") is None


def test_a_refused_step_is_the_verdict(tmp_path: Path, make_run: Run) -> None:
    facts = Facts.of(make_run(tmp_path, steps=3, refused=4, outcome="refused", max_steps=9))
    assert facts.standing == "refused" and facts.headline == "Step 4 was refused"
    assert facts.explanation == "1 of 201 tokens differ; first: token 1"
    assert facts.outcome == "refused, 3 of 9 steps" and facts.refusal is not None


def test_a_refusal_right_before_a_kill_is_the_verdict_too(tmp_path: Path, make_run: Run) -> None:
    facts = Facts.of(make_run(tmp_path, steps=3, refused=4, outcome=None))
    assert facts.standing == "refused"
    assert facts.outcome.startswith("not finished: still running, or killed")


def test_a_refusal_that_was_overcome_stays_on_record(tmp_path: Path, make_run: Run, make_line: Line) -> None:
    run = make_run(tmp_path, steps=3, refused=4, outcome="refused", max_steps=9)
    with RunDirectory.start(run.path, run.config(), resume=True) as again:
        for step in range(4, 10):
            again.append(make_line(step))
        again.finish("finished", {})
    facts = Facts.of(run)
    assert facts.standing == "proved" and facts.refusal is None
    assert [refusal.step for refusal in facts.overcome] == [4]


def test_a_step_that_was_held(tmp_path: Path, make_run: Run) -> None:
    run = make_run(tmp_path, steps=1, outcome=None)
    with RunDirectory.start(run.path, run.config(), resume=True) as again:
        again.write_refusal(2, Decision("hold", "proposal-2", "waiting"))
    assert Facts.of(run).headline == "Step 2 was held"


def test_a_run_without_a_gate_is_not_proved(tmp_path: Path, make_run: Run, make_line: Line) -> None:
    run = make_run(tmp_path, steps=2, outcome=None, parity={"gate": False}, max_steps=3)
    with RunDirectory.start(run.path, run.config(), resume=True) as again:
        again.append(make_line(3, **{"parity/max": 0.25, "parity/frac_differing": 0.5}))
    facts = Facts.of(run)
    assert facts.standing == "unproved" and facts.headline == "Parity broken in 1 of 3 steps, by up to 0.25"
    assert "steps 3" in facts.explanation and "parity.gate = false" in facts.explanation


def test_a_run_before_its_first_step(tmp_path: Path, make_run: Run) -> None:
    facts = Facts.of(make_run(tmp_path, steps=0, outcome=None))
    assert facts.standing == "empty" and facts.seconds == 0.0 and facts.latest("reward") is None
    assert facts.headline == "No step has been taken yet"


def test_what_was_not_measured_is_a_gap(tmp_path: Path, make_run: Run, make_line: Line) -> None:
    run = make_run(tmp_path, steps=1, outcome=None, max_steps=3)
    with RunDirectory.start(run.path, run.config(), resume=True) as again:
        again.append(make_line(2, reward=None))
        again.append(make_line(3, reward=math.inf))
    values = Facts.of(run).series("reward")
    assert np.isnan(values[1]) and np.isinf(values[2]) and len(values) == 3


def test_what_is_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"needs config\.toml"):
        Facts.of(RunDirectory(tmp_path))
