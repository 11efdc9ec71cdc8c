"""A run that is killed, or interrupted, resumes and ends with the weights of one that was not."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def _weights(run: Path) -> str:
    return hashlib.sha256((run / "weights" / "step_6" / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture
def undisturbed(lockstep, recipe, tmp_path: Path) -> str:
    done = lockstep("train", "-c", recipe, "--json", "output_dir=undisturbed")
    assert done.returncode == 0, done.stderr
    return _weights(tmp_path / "undisturbed")


def _until(condition, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, "it ended before it was stopped"
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.002)


def _steps(run: Path) -> int:
    file = run / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


@pytest.mark.parametrize("after", [[0, 3, 5], [1, 2, 4]])
def test_kill_9_again_and_again(after, command, environment, recipe, lockstep, tmp_path: Path, undisturbed) -> None:
    run = tmp_path / "killed"
    for attempt, steps in enumerate(after):
        resume = ["--resume"] if attempt and (run / "config.toml").exists() else []
        arguments = command("train", "-c", recipe, "--json", f"output_dir={run}", *resume)
        process = subprocess.Popen(arguments, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
        ready = (run / "evaluations.jsonl").exists if steps == 0 else (lambda s=steps: _steps(run) >= s)
        _until(ready, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = lockstep("train", "-c", recipe, "--json", f"output_dir={run}", "--resume")
    assert done.returncode == 0, done.stderr
    assert _steps(run) == 6
    assert _weights(run) == undisturbed
    assert not [leftover.name for leftover in run.rglob("*.partial")]


def test_ctrl_c_is_a_clean_stop(command, environment, recipe, lockstep, tmp_path: Path, undisturbed) -> None:
    run = tmp_path / "stopped"
    arguments = command("train", "-c", recipe, "--plain", f"output_dir={run}")
    process = subprocess.Popen(arguments, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    _until(lambda: _steps(run) >= 3, process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert b"Traceback" not in stderr
    assert b"interrupted" in stderr
    assert (run / "report.html").exists()
    done = lockstep("train", "-c", recipe, "--json", f"output_dir={run}", "--resume")
    assert done.returncode == 0, done.stderr
    assert _weights(run) == undisturbed


def test_a_full_disk_is_one_message_and_the_run_resumes(
    command, environment, recipe, lockstep, tmp_path: Path, undisturbed
) -> None:
    """A real limit on the size of a file: the checkpoint's master weights do not fit, everything smaller does."""
    run = tmp_path / "full"
    limited = ["sh", "-c", 'ulimit -f 300; exec "$@"', "sh"]
    arguments = [*limited, *command("train", "-c", recipe, "--json", f"output_dir={run}", "warm_start.steps=0")]
    done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "must be written whole" in done.stderr or "storage" in done.stderr
    again = lockstep("train", "-c", recipe, "--json", f"output_dir={run}", "--resume", "warm_start.steps=0")
    assert again.returncode == 0, again.stderr
    assert _steps(run) == 6
