"""`lockstep replay` as a user meets it: the last line, exit codes, JSON alone on stdout; a run is only read."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.cli.replay import steps
from lockstep.core import Logprobs
from lockstep.errors import InputError
from lockstep.trace import RunDirectory, rollouts


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Where the run of this module lies; `run` makes it when it is first asked for."""
    return tmp_path_factory.mktemp("finished") / "run"


@pytest.fixture
def run(finished: Path, lockstep, recipe) -> Path:
    if not finished.exists():
        options = ("max_steps=4", "pipeline.max_lag=1", "engine.max_sequences=14")
        done = lockstep("train", "-c", recipe, "--json", f"output_dir={finished}", *options)
        assert done.returncode == 0, done.stderr
    return finished


@pytest.fixture
def altered(run: Path, tmp_path: Path) -> Path:
    """A copy in which one bit of a logprob of step 3 is another."""
    path = tmp_path / "altered"
    shutil.copytree(run, path, ignore=shutil.ignore_patterns("checkpoints"))
    file = RunDirectory(path).rollouts_file(3)
    first, *others = rollouts.read(file)
    logprobs = first.rollout.sampler_logprobs
    values = logprobs.values.copy()
    values.view(np.uint32)[1] ^= 1
    changed = replace(first.rollout, sampler_logprobs=Logprobs(values, logprobs.contract))
    rollouts.write(file, [replace(first, rollout=changed), *others])
    return path


def state(path: Path) -> dict[str, tuple[int, bytes]]:
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


def test_the_last_line_says_what_happened_and_no_file_changes(lockstep, run: Path) -> None:
    before = state(run)
    done = lockstep("replay", run)
    assert (done.returncode, done.stdout) == (
        0,
        "4 of 4 steps replayed: tokens, logprobs and weights are the same, bit for bit\n",
    ), done.stderr
    assert "warning" not in done.stderr
    assert "replay" in done.stderr and "4/4" in done.stderr, "a progress bar"
    assert state(run) == before


def test_steps_and_json(lockstep, run: Path) -> None:
    done = lockstep("replay", run, "--step", "4", "--step", "2-3", "--rewards", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert (found["equal"], found["divergence"], found["notes"]) == (True, None, [])
    assert found["asked"] == [step["step"] for step in found["steps"]] == [2, 3, 4]
    digests = [line["weight_digest"] for line in RunDirectory(run).metrics()]
    assert [step["digest"] for step in found["steps"]] == digests[1:]
    assert [step["rewards"]["rewards"] for step in found["steps"]] == [0, 0, 0]


def test_a_divergence_is_named_and_exit_code_1(lockstep, altered: Path) -> None:
    before = state(altered)
    done = lockstep("replay", altered)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith(
        "2 of 4 steps are the same. The first divergence: logprob (step 3, rollout 3/0/0, token 1)"
    )
    found = json.loads(lockstep("replay", altered, "--json").stdout)
    assert found["equal"] is False and str(found["summary"]) in done.stdout
    assert (found["divergence"]["step"], found["divergence"]["what"]) == (3, "logprob")
    assert found["divergence"]["place"]["index"] == 1
    assert lockstep("replay", altered, "--step", "1-2").returncode == 0
    assert state(altered) == before


def test_what_cannot_be_replayed_is_one_message_and_exit_code_2(lockstep, run: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(run, damaged, ignore=shutil.ignore_patterns("checkpoints"))
    RunDirectory(damaged).rollouts_file(2).write_bytes(b"PAR1 and nothing else")
    gone = tmp_path / "gone"
    shutil.copytree(run, gone, ignore=shutil.ignore_patterns("checkpoints", "step_000002.parquet"))
    for arguments, says in (
        (["nowhere"], "needs config.toml"),
        ([run, "--step", "9"], "step (9)"),
        ([run, "--step", "3-2"], "a range from low to high"),
        ([run, "--step", "two"], "a range from low to high"),
        ([damaged], "must be a rollout file"),
        ([gone], "step_000002.parquet"),
    ):
        done = lockstep("replay", *arguments)
        assert done.returncode == 2, done.stderr
        assert says in done.stderr.replace("\n", " ")
        assert "Traceback" not in done.stderr
        assert done.stdout == ""


def test_another_machine_is_a_warning(lockstep, run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    file = RunDirectory(moved).manifest_file
    manifest = json.loads(file.read_text())
    manifest["versions"]["torch"] = "1.0"
    file.write_text(json.dumps(manifest))
    done = lockstep("replay", moved, "--step", "4")
    assert done.returncode == 0, done.stderr
    assert "warning: versions.torch is" in done.stderr and "was 1.0 in the run" in done.stderr
    assert done.stdout.startswith("1 of 1 steps replayed")


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 30))))
def test_ranges_name_every_step_between(ranges: list[tuple[int, int]]) -> None:
    words = [f"{first}-{first + more}" if more else str(first) for first, more in ranges]
    assert steps(words) == [step for first, more in ranges for step in range(first, first + more + 1)]


@pytest.mark.parametrize("word", ["", "-", "1-", "-1", "1-2-3", "a", "1,2", " 1", "2-1", "1" * 10])
def test_what_is_no_range_is_refused(word: str) -> None:
    with pytest.raises(InputError, match="a number, or a range"):
        steps([word])
