"""Contestants take turns: round by round, the order reversed every other round, the first round only a warm-up.

In: contestants, the question of each round. Out: everybody's answers, and what ratios follow.

    round 0 (not counted)   a b c
    round 1                 c b a
    round 2                 a b c ...

Whoever is not asked is stopped. A machine that slows down for a while slows all of them, so that the ratio of one round
says more than the ratio of two medians.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockstep.adapters.engines.process import Program, Worker, WorkerFailed
from lockstep.errors import message

Question = Callable[[int], dict[str, Any]]
"""What everybody is asked in round i."""
Announce = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle of some numbers and how far they lie apart."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Standing:
    """What one contestant did: versions, the answers of all rounds (the warm-up first), and its peak memory."""

    program: Program
    versions: dict[str, str]
    answers: tuple[dict[str, Any], ...]
    peak_gib: float | None

    @property
    def seconds(self) -> list[float]:
        """Of each counted round."""
        return [float(answer["seconds"]) for answer in self.answers[1:]]


def ratios(theirs: Standing, ours: Standing) -> list[float]:
    """How many times as long they took, round by round."""
    return [a / b for a, b in zip(theirs.seconds, ours.seconds, strict=True)]


def hold(
    entrants: Sequence[Program], question: Question, rounds: int, logs: Path, announce: Announce
) -> dict[str, Standing]:
    """A warm-up and `rounds` rounds; standings by name, in the order of the entrants. Raises `WorkerFailed`."""
    with ExitStack() as stack:
        running, versions = [], {}
        for program in entrants:
            announce(f"{program.name}: starting")
            contestant = stack.enter_context(Worker(program, log_of(logs, program)))
            versions[program.name] = contestant.start()
            contestant.pause()
            running.append(contestant)
        answers: dict[str, list[dict[str, Any]]] = {contestant.name: [] for contestant in running}
        for number in range(rounds + 1):
            asked = question(number)
            for contestant in running if number % 2 == 0 else reversed(running):
                answer = turn(contestant, asked)
                answers[contestant.name].append(answer)
                announce(f"round {number or 'warm-up'}: {contestant.name} {answer['seconds']:.2f} s")
        return {
            contestant.name: Standing(
                contestant.program, versions[contestant.name], tuple(answers[contestant.name]), contestant.peak_gib
            )
            for contestant in running
        }


def turn(contestant: Worker, asked: dict[str, Any]) -> dict[str, Any]:
    """Ask a paused contestant; it is paused again when it has answered. Raises `WorkerFailed`."""
    contestant.resume()
    answer = contestant.ask(**asked)
    contestant.pause()
    seconds = answer.get("seconds")
    if not isinstance(seconds, (int, float)) or not seconds > 0:
        do = "Mend the script in bench/peers"
        who = f"contestant ({contestant.name})"
        raise WorkerFailed(message(who, "an answer says how long it took", got=seconds, expected="seconds > 0", do=do))
    return answer


def log_of(logs: Path, program: Program) -> Path:
    """Where the words of an program are kept: its name, with anything but letters and digits as a dash."""
    plain = "".join(c if c.isalnum() else "-" for c in program.name).strip("-")
    return logs / f"{plain}.log"
