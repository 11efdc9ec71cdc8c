"""The loop with the engine in a process of its own: timing is free, everything else is not."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from lockstep.engine.remote import RemoteEngine
from lockstep.errors import EngineDied
from lockstep.pipeline import Loop, Parts
from lockstep.trace import RunDirectory


def apart(tiny_config, **changes: Any):
    tree = {
        "max_steps": 6,
        "pipeline": {"max_lag": 2, "executor": "processes"},
        "train": {"checkpoint_every": 3},
        "warm_start": {"steps": 4, "batch": 8, "lr": 3e-3},
        **changes,
    }
    return tiny_config(**tree)


def whole(path: Path, steps: int) -> None:
    """Every step is there once, nothing was trained on twice, and every bit was the trainer's."""
    run = RunDirectory(path)
    lines = run.metrics()
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    assert {line["parity/max"] for line in lines} == {0.0}
    assert max(line["lag_max"] for line in lines) <= 2
    ids = [record.rollout.id for step in run.rollout_steps() for record in run.rollouts(step)]
    assert len(ids) == len(set(ids)) == steps * 12
    run.check()


def test_a_run_in_two_processes(run_loop, tiny_config, tmp_path: Path) -> None:
    seen: list[RemoteEngine] = []
    _, recorder = run_loop(tmp_path / "run", apart(tiny_config), edit=lambda parts, _: seen.append(parts.engine))
    whole(tmp_path / "run", 6)
    assert recorder.events[-1][0] == "end"
    with pytest.raises(ProcessLookupError):
        os.kill(seen[0].pid, 0)


@pytest.mark.parametrize("moment", ["rollout", "update"])
def test_an_engine_that_is_killed_ends_the_run_with_one_error_and_it_resumes(
    run_loop, tiny_config, tmp_path: Path, moment: str
) -> None:
    config = apart(tiny_config)

    def kill(parts: Parts, running: Loop) -> None:
        engine = parts.engine
        assert isinstance(engine, RemoteEngine)
        name = "step" if moment == "rollout" else "update_weights"
        real = getattr(engine, name)

        def then_die(*arguments: Any, **options: Any) -> Any:
            if parts.trainer.version.number >= 4:  # a fast engine may have drawn all there is soon after
                os.kill(engine.pid, signal.SIGKILL)
                time.sleep(0.05)
            return real(*arguments, **options)

        setattr(engine, name, then_die)

    with pytest.raises(EngineDied, match="SIGKILL"):
        run_loop(tmp_path / "run", config, edit=kill)
    assert RunDirectory(tmp_path / "run").manifest()["outcome"] == "failed"
    run_loop(tmp_path / "run", config, resume=True)
    whole(tmp_path / "run", 6)
