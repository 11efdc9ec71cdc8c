"""Runs that are killed without warning, again and again, at random moments; each must resume as if nothing had been.

In: an executor, how many kills. Out: how they ended. Real processes, SIGKILL, the real command line.

With the inline executor the weights at the end must be those of a run that nobody disturbed. With the engine in a
process of its own timing is free, so the run is held to its trace: every step once, no rollout twice, no bit unequal,
no token too old.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from lockstep.harness.draws import Draws
from lockstep.trace import RunDirectory

STEPS, MAX_LAG, PROMPTS, SAMPLES = 24, 2, 3, 4

_RECIPE = f"""
model = "tiny"
max_steps = {STEPS}
num_prompts_per_step = {PROMPTS}
num_generations = {SAMPLES}
threads = 1
report_to = []
[task]
name = "reverse"
length = 2
letters = 4
[sampling]
max_tokens = 5
[engine]
kv_cache_gb = 0.01
max_sequences = 14
[warm_start]
steps = 12
batch = 8
[train]
checkpoint_every = 4
[pipeline]
max_lag = {MAX_LAG}
engine_threads = 1
"""


@dataclass(frozen=True, slots=True)
class Killed:
    """`kills` of the trainer and of the engine's process so far, in `runs` that came to their end all the same."""

    kills: int = 0
    engine_kills: int = 0
    runs: int = 0
    wrong: str = ""


def kills(count: int, executor: str, directory: Path, seed: int = 0) -> Iterator[Killed]:
    """Kill `count` times; runs that end are judged and followed by others. Yields what has happened after each kill."""
    draws, found = Draws(seed, f"kills/{executor}"), Killed()
    recipe = directory / "recipe.toml"
    recipe.write_text(_RECIPE + f'executor = "{executor}"\n', encoding="utf-8")
    expected = ""
    if executor == "inline":
        undisturbed = directory / "undisturbed"
        if (code := _start(recipe, undisturbed).wait()) != 0:
            yield replace(found, wrong=f"the undisturbed run ended with exit code {code}")
            return
        expected = _last_digest(undisturbed)
    run = directory / "run_0"
    while found.kills < count and not found.wrong:
        process = _start(recipe, run)
        victim = _engine_of(process) if executor == "processes" and draws.chance(0.5) else None
        time.sleep(draws.number(0.0, 5.0) if victim else draws.number(0.5, 9.0))
        if process.poll() is None:
            _kill(victim or process.pid)
            found = replace(found, kills=found.kills + 1, engine_kills=found.engine_kills + (victim is not None))
        code = process.wait()
        if code == 0:
            found = replace(found, runs=found.runs + 1, wrong=_judge(run, expected))
            run = directory / f"run_{found.runs}"
        yield found
    if not found.wrong:
        code = _start(recipe, run).wait()
        wrong = _judge(run, expected) if code == 0 else f"{run.name} ended with exit code {code}"
        yield replace(found, runs=found.runs + 1, wrong=wrong)


def _start(recipe: Path, run: Path) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-m", "lockstep", "train", "-c", str(recipe), "--json", f"output_dir={run}"]
    if (run / "config.toml").exists():
        arguments.append("--resume")
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # it has just ended by itself


def _engine_of(trainer: subprocess.Popen[bytes]) -> int | None:
    """The process of the engine, as soon as the trainer has one: the child that was spawned last."""
    file = Path(f"/proc/{trainer.pid}/task/{trainer.pid}/children")
    while trainer.poll() is None:
        children = file.read_text(encoding="ascii").split()
        if len(children) > 1:  # the other one watches over shared resources
            return int(children[-1])
        time.sleep(0.05)
    return None


def _judge(run: Path, expected: str) -> str:
    """What is wrong with a run that came to its end, or nothing."""
    directory = RunDirectory(run)
    lines = directory.metrics()
    steps = [line["step"] for line in lines]
    ids = [record.rollout.id for step in directory.rollout_steps() for record in directory.rollouts(step)]
    rules = {
        f"steps {steps}": steps == list(range(1, STEPS + 1)),
        f"{len(ids) - len(set(ids))} rollouts twice": len(ids) == len(set(ids)),
        f"{len(ids)} rollouts": len(ids) == STEPS * PROMPTS * SAMPLES,
        "parity is not 0": all(line["parity/max"] == 0.0 for line in lines),
        "a token is too old": all(line["lag_max"] <= MAX_LAG for line in lines),
        "other weights than those of the undisturbed run": not expected or _last_digest(run) == expected,
    }
    return next((f"{run.name}: {wrong}" for wrong, right in rules.items() if not right), "")


def _last_digest(run: Path) -> str:
    return RunDirectory(run).metrics()[-1]["weight_digest"]
