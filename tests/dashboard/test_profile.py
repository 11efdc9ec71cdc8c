"""Where the time of a step went."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import orjson
import pytest
import torch
from rich.console import Console

from lockstep.config import RunConfig
from lockstep.dashboard.profile import FIRST, LAST, MOST_OPERATORS, ProfileObserver, operators, stages

STEP = {
    "time/step": 2.0, "time/rollout": 1.0, "time/train": 0.5, "time/parity": 0.1, "time/forward": 0.2,
    "time/backward": 0.25, "reward": 0.5,
}  # fmt: skip


def event(key: str, microseconds: float, count: int = 1) -> SimpleNamespace:
    return SimpleNamespace(key=key, self_cpu_time_total=microseconds, count=count)


def test_stages_and_what_none_of_them_claims_are_the_whole_step() -> None:
    found = {share.name: share for share in stages([STEP, {**STEP, "time/step": 4.0, "time/rollout": 3.0}])}
    assert found["rollout"].seconds == pytest.approx(2.0)
    outer = [share for name, share in found.items() if not name.startswith("  ")]
    assert sum(share.seconds for share in outer) == pytest.approx(3.0)
    assert sum(share.fraction for share in outer) == pytest.approx(1.0)
    assert found["  forward (in train)"].fraction == pytest.approx(0.2 / 3.0)
    assert "reward" not in found, "a stage that takes no time is not shown"


def test_operators_and_the_time_outside_of_them_are_the_whole_step() -> None:
    events = [event(f"op{i}", 1000.0 * i, i) for i in range(1, MOST_OPERATORS + 6)]
    found = operators(events, 2, 1.0)
    assert found[0].name == f"op{MOST_OPERATORS + 5}"
    assert found[0].calls == (MOST_OPERATORS + 5) / 2
    assert [share.name for share in found[-2:]] == ["all other operators", "outside of operators"]
    assert sum(share.seconds for share in found) == pytest.approx(1.0)


def observed(tmp_path: Path, steps: int) -> tuple[ProfileObserver, str]:
    out = io.StringIO()
    observer = ProfileObserver(Console(file=out, width=100))
    observer.on_start(RunConfig(), {"directory": str(tmp_path)})
    observer.on_step(0, {"eval/accuracy": 0.5})
    for step in range(1, steps + 1):
        torch.ones(8, 8) @ torch.ones(8, 8)
        observer.on_step(step, STEP)
    observer.on_end({"outcome": "finished"})
    return observer, out.getvalue()


def test_a_few_steps_are_looked_at_and_written_down(tmp_path: Path) -> None:
    observer, said = observed(tmp_path, LAST + 2)
    tree = orjson.loads((tmp_path / "profile.json").read_bytes())
    assert tree["steps"] == LAST - FIRST + 1
    assert [one["name"] for one in tree["stages"]] == [share.name for share in observer.stages]
    assert "aten::mm" in {one["name"] for one in tree["operators"]}
    assert "rollout" in said and "aten::mm" in said and said.strip().endswith("profile.json")


def test_a_run_that_ends_early_shows_what_was_seen(tmp_path: Path) -> None:
    _, said = observed(tmp_path, FIRST)
    assert orjson.loads((tmp_path / "profile.json").read_bytes())["steps"] == 1
    assert f"steps {FIRST} to {FIRST}" in said


def test_a_run_without_a_second_step_says_so(tmp_path: Path) -> None:
    _, said = observed(tmp_path, 1)
    assert "nothing to show" in said
    assert not (tmp_path / "profile.json").exists()
