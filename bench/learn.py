"""`python -m bench learn`: seconds of training until 0.6 of the held-out sums are answered, seeds 0, 1, 2.

In: options. Out: a `Result`: seconds to the first evaluation at or above the goal, ours against TRL.

Every 5 steps both write their weights, and one examiner answers the held-out problems greedily with them. Neither is on
the clock, which counts steps alone. Who has not reached the goal after 40 steps has not reached it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import recipe
from bench.contest import log_of, turn
from bench.options import OURS, Options, announce
from bench.result import Comparison, Result
from bench.train import settings
from lockstep.adapters.engines.process import Worker
from lockstep.errors import StageError, message

ROW = "learn"
GOAL = 0.6
STEPS, EVERY = 40, 5
BARS = {recipe.TRL: 10.0, recipe.TRL_MASTERS: 10.0}


@dataclass(slots=True)
class Course:
    """One contestant with one seed: seconds of each step, rewards, and held-out accuracy after some of them."""

    seconds: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    accuracy: dict[int, float] = field(default_factory=dict)

    @property
    def reached(self) -> bool:
        return any(value >= GOAL for value in self.accuracy.values())

    @property
    def total(self) -> float:
        """Seconds to the last evaluation: the one that reached the goal, or that of the last step."""
        return sum(self.seconds)


def run(options: Options) -> Result:
    """One race a seed. Raises `WorkerFailed`, and `StageError` if ours does not get there."""
    steps, every = (2, 1) if options.trial else (STEPS, EVERY)
    versions: dict[str, dict[str, str]] = {}
    races: list[dict[str, Course]] = []
    for seed in range(options.rounds):
        config = recipe.configuration(options, steps, seed)
        entrants = [recipe.trainer(name, config, options) for name in options.chosen(recipe.NAMES)]
        with ExitStack() as stack:
            running = []
            for program in (*entrants, recipe.examiner(config, options)):
                announce(f"seed {seed}, {program.name}: starting")
                one = stack.enter_context(Worker(program, log_of(options.logs(ROW) / str(seed), program)))
                versions[program.name] = one.start()
                one.pause()
                running.append(one)
            races.append(race(running[:-1], running[-1], steps, every))
    config = recipe.configuration(options, steps, 0)
    contestants = {
        name: {"versions": versions[name], "seeds": [_course(one[name]) for one in races]} for name in races[0]
    }
    about = {"goal": GOAL, "steps": steps, "every": every, "seeds": options.rounds, "threads": options.threads}
    return Result(
        ROW,
        {"config": settings(config.model_dump(mode="json"))} | about,
        contestants,
        [] if options.trial else [compare(races, name) for name in races[0] if name != OURS],
        {"examiner": versions["examiner"], "problems": len(recipe.examiner(config, options).settings["problems"])},
    )


def race(contestants: Sequence[Worker], examiner: Worker, steps: int, every: int) -> dict[str, Course]:
    """Train until the goal or for `steps` steps, `every` steps at a turn, the order reversed every other turn."""
    courses = {contestant.name: Course() for contestant in contestants}
    with tempfile.TemporaryDirectory(prefix="lockstep-bench-") as directory:
        for start in range(0, steps, every):
            turns = contestants if start // every % 2 == 0 else list(reversed(contestants))
            for contestant in turns:
                course = courses[contestant.name]
                if not course.reached:
                    _block(contestant, course, every)
                    path = str(Path(directory) / "weights")
                    course.accuracy[start + every] = _examined(contestant, examiner, path)
                    announce(
                        f"step {start + every}: {contestant.name} {course.total:.1f} s, "
                        f"accuracy {course.accuracy[start + every]:.3f}"
                    )
                if course.reached:
                    contestant.close()  # its memory is of use to the others
    return courses


def compare(races: Sequence[Mapping[str, Course]], peer: str) -> Comparison:
    """Means over the seeds; ratio of the means, its range that of the seeds. Raises `StageError` if ours failed."""
    ours, theirs = ([one[name] for one in races] for name in (OURS, peer))
    if not all(course.reached for course in ours):
        got = [max(course.accuracy.values()) for course in ours]
        raise StageError(
            message(
                "learn", "ours reaches the goal with every seed", got=got, expected=f">= {GOAL}", do="Look at its runs"
            )
        )
    each = [a.total / b.total for a, b in zip(theirs, ours, strict=True)]
    mine, other = (sum(course.total for course in side) / len(side) for side in (ours, theirs))
    there = all(course.reached for course in theirs)
    what = f"seconds of training to held-out accuracy {GOAL}, {len(races)} seeds"
    bar = BARS.get(peer)
    return Comparison(what, peer, "s", mine, other if there else None, other / mine, min(each), max(each), bar)


def _block(contestant: Worker, course: Course, steps: int) -> None:
    for _ in range(steps):
        answer = turn(contestant, {"do": "step"})
        course.seconds.append(float(answer["seconds"]))
        course.rewards.append(float(answer["reward"]))


def _examined(contestant: Worker, examiner: Worker, path: str) -> float:
    """Accuracy of the contestant's present weights."""
    contestant.resume()
    contestant.ask(do="save", path=path)
    contestant.pause()
    found = turn(examiner, {"path": path})
    return found["passed"] / found["total"]


def _course(course: Course) -> dict[str, Any]:
    accuracy = {str(step): value for step, value in course.accuracy.items()}
    return {
        "reached": course.reached,
        "seconds_to_goal": course.total if course.reached else None,
        "accuracy": accuracy,
        "seconds": course.seconds,
        "rewards": course.rewards,
    }
