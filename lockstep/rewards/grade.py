"""What every reward gives, and the seam that all of them fit.

In: tasks and rollouts. Out: `Grade`s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from lockstep.core import Reward, Rollout, Task, Verdict


@dataclass(frozen=True, slots=True)
class Grade:
    """A rollout's reward, and the verdict it rests on (None: a function gave a bare number)."""

    reward: Reward
    verdict: Verdict | None


class Rewarder(Protocol):
    """Grades rollouts; one that cannot be graded is data (`reward.value` None), never an exception."""

    def grade(self, tasks: Sequence[Task], rollouts: Sequence[Rollout]) -> list[Grade]:
        """One grade for each rollout, in order. `tasks[i]` is the task of `rollouts[i]`."""
        ...


def by_verdict(name: str, rollout: Rollout, verdict: Verdict) -> Grade:
    """The grade of a verdict: pass is 1.0, fail is 0.0, and anything else is undecided, which is never 0.0."""
    value = {"pass": 1.0, "fail": 0.0}.get(verdict.status)
    return Grade(Reward(rollout.id, value, {name: value}), verdict)


def failed(name: str, rollout: Rollout, code: str, witness: str) -> Grade:
    """The grade of a rollout whose check or function failed; a part and the verdict name the error `code`."""
    return Grade(
        Reward(rollout.id, None, {name: None, f"error/{code}": None}),
        Verdict("error", code, f"{name}@0", witness=witness),
    )


def require_pairs(tasks: Sequence[Task], rollouts: Sequence[Rollout]) -> None:
    """A rollout judged by another's answer would be a silent fault of ours."""
    assert len(tasks) == len(rollouts), f"{len(tasks)} tasks for {len(rollouts)} rollouts"
    for task, rollout in zip(tasks, rollouts, strict=True):
        assert rollout.task_id == task.id, f"rollout {rollout.id} is of task {rollout.task_id}, not {task.id}"
