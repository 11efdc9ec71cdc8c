"""The reward of a check: 1.0 for right, 0.0 for wrong, none for undecided.

In: a check, tasks and rollouts. Out: grades, with what each verdict cost.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lockstep.core import Check, Rollout, Task
from lockstep.errors import StageError, boundary
from lockstep.rewards.grade import Grade, by_verdict, failed, require_pairs


@dataclass(frozen=True, slots=True)
class VerifiableReward:
    """Rewards what `check` passes."""

    check: Check

    def grade(self, tasks: Sequence[Task], rollouts: Sequence[Rollout]) -> list[Grade]:
        """One grade for each rollout; a check that raises leaves its rollout undecided."""
        require_pairs(tasks, rollouts)
        return [self._grade(task, rollout) for task, rollout in zip(tasks, rollouts, strict=True)]

    def _grade(self, task: Task, rollout: Rollout) -> Grade:
        name = type(self.check).__name__
        start = time.perf_counter()
        try:
            with boundary(f"check ({name}, rollout {rollout.id})"):
                verdict = self.check.check(task, rollout.text)
                part = verdict.check.partition("@")[0]
        except StageError as failure:
            return failed(name, rollout, type(failure.__cause__).__name__, str(failure))
        return by_verdict(part, rollout, replace(verdict, seconds=time.perf_counter() - start))
