"""Accuracy on problems that were never trained on.

In: an engine, tasks, their check. Out: the fraction of passes, with the counts of what could not be decided.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lockstep.core import Check, Request, Rollout, SamplingParams, Task
from lockstep.models import Model

Generate = Callable[[Sequence[Request]], list[Rollout]]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """`passed` of `total`; undecided tasks count as not passed and are said apart."""

    passed: int
    undecided: int
    total: int

    @property
    def value(self) -> float:
        return self.passed / self.total


def accuracy(model: Model, tasks: Sequence[Task], check: Check, params: SamplingParams, generate: Generate) -> Accuracy:
    """Answer every task once, drawn with `params`, and check the text. The same params give the same draws."""
    requests = [
        Request(f"eval/{i}", tuple(model.tokenizer.encode_prompt(task.prompt)), params, task.id)
        for i, task in enumerate(tasks)
    ]
    rollouts = generate(requests)
    verdicts = [check.check(task, rollout.text).status for task, rollout in zip(tasks, rollouts, strict=True)]
    return Accuracy(verdicts.count("pass"), len([v for v in verdicts if v not in ("pass", "fail")]), len(tasks))
