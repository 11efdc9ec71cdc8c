"""A few real kills; `lockstep prove kills` does as many as one likes."""

from __future__ import annotations

from pathlib import Path

import pytest

from lockstep.harness import kills as module
from lockstep.harness.kills import Killed, kills
from lockstep.trace import RunDirectory


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["inline", "processes"])
def test_runs_resume_after_kills_at_random_moments(
    executor: str, tmp_path: Path, new_home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCKSTEP_HOME", str(new_home(tmp_path / "home")))
    found = list(kills(6, executor, tmp_path))[-1]
    assert (found.kills, found.wrong) == (6, "")
    assert found.runs >= 1


def test_a_run_that_is_not_what_it_should_be_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [{"step": i, "parity/max": 0.0, "lag_max": 1, "weight_digest": "a"} for i in range(1, 25)]
    monkeypatch.setattr(RunDirectory, "metrics", lambda self: lines)
    monkeypatch.setattr(RunDirectory, "rollout_steps", lambda self: [])
    assert module._judge(tmp_path / "run", "a") == "run: 0 rollouts"
    lines[3]["parity/max"] = 1e-9
    lines.pop()
    assert module._judge(tmp_path / "run", "a").startswith("run: steps [1, 2,")
    assert Killed().wrong == ""
