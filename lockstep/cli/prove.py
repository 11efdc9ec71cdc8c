"""`lockstep prove`: the promise put to the test, by the thousand: engine and trainer agree in every bit."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import orjson
from cyclopts import App
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

prove = App(name="prove", help="Put the promise to the test: random schedules, or a million tokens of a real model.")


@prove.command
def schedules(count: int = 10_000, *, workers: int = 0, seed: int = 0, json: bool = False) -> int:
    """Run COUNT random schedules on tiny models of every family in bf16 and fp32, and compare every logprob.

    Parameters
    ----------
    count
        How many; each is decided by its number.
    workers
        Processes; 0: one a core.
    seed
        Number of the first schedule.
    json
        Print the findings as JSON on stdout, and nothing else.
    """
    from lockstep.harness import prove as proof
    from lockstep.harness.schedules import Findings

    total, started = Findings(), time.perf_counter()
    with _Bar("schedules", count, silent=json) as advance:
        for found in proof.schedules(count, workers or len(os.sched_getaffinity(0)), seed):
            total += found
            advance(total.schedules)
    words = (
        f"{total.schedules:,} schedules: {total.tokens:,} tokens compared, {total.differing} differing; "
        f"{total.mixed_tokens:,} of them in sequences of several weight versions, {total.prefix_tokens:,} prompt "
        f"tokens found in the prefix cache, {total.preemptions:,} preemptions, {total.updates:,} updates, "
        f"{total.aborts:,} aborts; {total.leaked_pages} pages leaked"
    )
    return _conclude(asdict(total), total.wrong, words, started, json=json)


@prove.command
def tokens(
    count: int = 1_000_000, *, model: str = "smollm2", dtype: Literal["bfloat16", "float32"] = "bfloat16",
    workers: int = 0, seed: int = 0, json: bool = False,
) -> int:  # fmt: skip
    """Draw COUNT tokens with MODEL and score each again in the trainer's packed forward.

    Parameters
    ----------
    count
        At least how many; whole batches are compared.
    model
        A name from `lockstep models list`, or an HF directory.
    dtype
        Of weights, keys and activations.
    workers
        Processes of one thread, each with the model and its weights twice; 0: one a core.
    seed
        Decides prompts and draws.
    json
        Print the findings as JSON on stdout, and nothing else.
    """
    from lockstep.harness import prove as proof

    found, started = proof.Compared(), time.perf_counter()
    with _Bar("tokens", count, silent=json) as advance:
        for found in proof.tokens(model, count, dtype, workers=workers or len(os.sched_getaffinity(0)), seed=seed):
            advance(found.tokens)
    words = (
        f"{found.tokens:,} tokens of {found.sequences:,} sequences compared, {found.differing} differing; "
        f"{found.prefix_tokens:,} prompt tokens found in the prefix cache, {found.preemptions:,} preemptions"
    )
    return _conclude(asdict(found), found.wrong, words, started, json=json)


@prove.command
def kills(
    count: int = 50, *, executor: Literal["inline", "processes"] = "inline", seed: int = 0, json: bool = False
) -> int:
    """Kill tiny asynchronous runs COUNT times at random moments; each must resume as if nothing had happened.

    Parameters
    ----------
    count
        How many SIGKILLs; about 6 seconds each.
    executor
        inline: the weights at the end are those of an undisturbed run. processes: trainer or engine is killed, and
        every step is there once, no rollout twice, no bit unequal, no token too old.
    seed
        Decides the moments.
    json
        Print the findings as JSON on stdout, and nothing else.
    """
    from lockstep.harness import kills as proof

    found, started = proof.Killed(), time.perf_counter()
    with (
        tempfile.TemporaryDirectory(prefix="lockstep-kills-") as directory,
        _Bar("kills", count, silent=json) as advance,
    ):
        for found in proof.kills(count, executor, Path(directory), seed):
            advance(found.kills)
    end = "with the weights of the undisturbed one" if executor == "inline" else "without loss or duplication"
    words = f"{found.kills} kills, {found.engine_kills} of them of the engine's process; {found.runs} runs ended {end}"
    return _conclude(asdict(found), found.wrong, words, started, json=json)


@prove.command
def flips(count: int = 10_000, *, seed: int = 0, json: bool = False) -> int:
    """Offer COUNT weight updates of which one bit is wrong to engines of tiny models; each must be refused.

    Parameters
    ----------
    count
        How many.
    seed
        Decides which bits.
    json
        Print the findings as JSON on stdout, and nothing else.
    """
    from lockstep.harness import flips as proof

    found, started = proof.Caught(), time.perf_counter()
    with (
        tempfile.TemporaryDirectory(prefix="lockstep-networks-") as directory,
        _Bar("flips", count, silent=json) as bar,
    ):
        for found in proof.flips(count, Path(directory), seed):
            bar(found.updates)
    words = f"{found.caught:,} of {found.updates:,} updates with one wrong bit were refused, the old weights serving"
    return _conclude(asdict(found), found.wrong, words, started, json=json)


ENOUGH = 0.95
"""Part of all combinations whose restoring set must be found."""


@prove.command
def settings(count: int = 100, *, workers: int = 0, seed: int = 0, json: bool = False) -> int:
    """Break tiny trainings by COUNT random combinations of settings; `qualify`'s search must find each set.

    1 to 4 of 14 settings that break parity are new, and any number of 6 that do not. At least 95 % must be found: what
    was put in, or a set that trials prove to be a smallest one.

    Parameters
    ----------
    count
        How many; each is decided by its number; 7 seconds each, or so.
    workers
        Processes; 0: one a core.
    seed
        Number of the first combination.
    json
        Print the findings as JSON on stdout, and nothing else.
    """
    from lockstep.harness import combinations as proof

    found, started = proof.Restored(), time.perf_counter()
    with _Bar("combinations", count, silent=json) as advance:
        for found in proof.combinations(count, workers or len(os.sched_getaffinity(0)), seed):
            advance(found.combinations)
    each = max(found.combinations, 1)
    sizes = ", ".join(f"{tried} of {size}" for size, (_, tried) in enumerate(found.by_size, start=1))
    words = (
        f"{found.found} of {found.combinations} restoring sets found ({sizes} settings), {found.exact} of them what "
        f"was put in; {found.trials / each:.1f} trials and {found.seconds / each:.1f} s each, {found.most_trials} "
        f"trials at most, {found.undetermined} without an answer"
    )
    wrong = "; ".join(found.missed) if found.found < ENOUGH * found.combinations else ""
    return _conclude(asdict(found), wrong, words, started, json=json)


class _Bar:
    """A progress bar on stderr; inside, a function that says how much is done."""

    def __init__(self, name: str, total: int, *, silent: bool) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=Console(file=sys.stderr), disable=silent)
        self._task = self._progress.add_task(name, total=total)

    def __enter__(self) -> Callable[[int], None]:
        self._progress.start()
        return lambda done: self._progress.update(self._task, completed=done)

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def _conclude(facts: dict[str, Any], wrong: str, words: str, started: float, *, json: bool) -> int:
    seconds = round(time.perf_counter() - started, 1)
    if json:
        print(orjson.dumps({**facts, "seconds": seconds}, option=orjson.OPT_INDENT_2).decode())
    else:
        print(f"{words}. {seconds:.0f} s.")
        print(wrong or "Nothing was wrong.")
    return 1 if wrong else 0
