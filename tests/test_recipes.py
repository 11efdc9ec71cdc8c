"""The recipes do what they promise. Whole runs, so all of it is marked `slow`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def train(directory: Path, recipe: str, *overrides: str) -> tuple[dict, list[dict]]:
    """Summary and metric lines of a finished run."""
    command = [sys.executable, "-m", "lockstep", "train", "--json", "--config", str(ROOT / "recipes" / recipe)]
    done = subprocess.run(
        [*command, f"output_dir={directory}", *overrides],
        cwd=directory.parent,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads(done.stdout), [json.loads(line) for line in lines]


def assert_in_lockstep(lines: list[dict], steps: int) -> None:
    """Every step compared tokens, and no bit of any of them differed."""
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    for line in lines:
        assert line["parity/num_tokens"] > 0
        assert line["parity/frac_differing"] == 0
        assert line["parity/max"] == 0.0


@pytest.mark.slow
def test_tiny_learns_to_reverse(tmp_path):
    summary, lines = train(tmp_path / "run", "tiny.toml")
    assert_in_lockstep(lines, summary["steps"])
    assert summary["accuracy_after"] >= 0.95
    assert (tmp_path / "run" / "report.html").stat().st_size > 0


@pytest.mark.slow
def test_tiny_learns_from_rollouts_ahead_of_the_trainer(tmp_path):
    """A quarter of the steps: stale tokens, exact all the same, and it gets better."""
    ahead = ("pipeline.max_lag=4", "engine.max_sequences=256", "max_steps=100", "train.checkpoint_every=50")
    summary, lines = train(tmp_path / "run", "tiny.toml", *ahead)
    assert_in_lockstep(lines, 100)
    assert 0 < max(line["lag_max"] for line in lines) <= 4
    assert summary["sampled_accuracy_after"] > summary["sampled_accuracy_before"] + 0.1


@pytest.mark.slow
@pytest.mark.model
def test_smollm2_learns_to_add(tmp_path):
    summary, lines = train(tmp_path / "run", "smollm2-add.toml")
    assert_in_lockstep(lines, 40)
    assert summary["reward_start"] <= 0.20
    assert summary["sampled_accuracy_before"] <= 0.20
    assert summary["reward_end"] >= 0.60
    assert summary["sampled_accuracy_after"] >= 0.60
    assert summary["accuracy_after"] >= 0.60 > summary["accuracy_before"]


@pytest.mark.slow
@pytest.mark.model
def test_smollm2_is_in_lockstep_in_fp32(tmp_path):
    """The first steps only: fp32 products take four times as long; `engine.dtype=float32` gives the whole run."""
    _, lines = train(tmp_path / "run", "smollm2-add.toml", "engine.dtype=float32", "max_steps=5", "eval.max_tasks=8")
    assert_in_lockstep(lines, 5)
