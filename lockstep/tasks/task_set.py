"""A set of tasks, split once, and the tasks that each step trains on.

In: tasks, a seed, a step. Out: a `TaskSet`; a batch that is a pure function of (seed, step), so that a resumed run
needs no state to go on with the same tasks.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lockstep.core import Task
from lockstep.errors import InputError, message
from lockstep.numerics import request_key


@dataclass(frozen=True, slots=True)
class TaskSet:
    """Tasks to train on, tasks never trained on, the name of the check that judges both (a key of `checks.CHECKS`),
    and how the tasks came about (`mapping`, a line for the user)."""

    train: tuple[Task, ...]
    held_out: tuple[Task, ...]
    check: str
    mapping: str


@functools.lru_cache(maxsize=4)
def permutation(count: int, seed: int, purpose: str, epoch: int = 0) -> np.ndarray:
    """A permutation int64 [count] keyed by all the arguments; read-only, because a run asks for each many times.

    Sorts raw Philox output, because numpy promises that stream for ever, but not the one of `Generator.permutation`.
    """
    raw = np.random.Philox(key=request_key(seed, purpose, epoch)).random_raw(count)
    order = np.argsort(raw, kind="stable")
    order.flags.writeable = False
    return order


def split(name: str, tasks: Sequence[Task], held_out: float, seed: int) -> tuple[tuple[Task, ...], tuple[Task, ...]]:
    """Tasks to train on and to hold out, each in the given order.

    The fraction `held_out` is of the *distinct prompts*, so that a prompt which occurs twice is never on both sides.
    Raises `InputError` when there are not two distinct prompts.
    """
    prompts = {prompt_key(task): index for index, task in enumerate(tasks)}
    if len(prompts) < 2:
        raise InputError(
            message(
                f"task ({name})",
                "some problems are trained on, some held out",
                got=f"{len(prompts)} distinct prompts",
                expected="at least 2",
                do="Give more problems",
            )
        )
    count = min(max(1, round(len(prompts) * held_out)), len(prompts) - 1)
    order = permutation(len(prompts), seed, "tasks/held_out")
    distinct = list(prompts)
    chosen = {distinct[i] for i in order[:count]}
    return (
        tuple(task for task in tasks if prompt_key(task) not in chosen),
        tuple(task for task in tasks if prompt_key(task) in chosen),
    )


def batch_of(task_set: TaskSet, step: int, size: int, seed: int) -> tuple[Task, ...]:
    """The `size` training tasks of step `step` (>= 0): each epoch is the whole set in another order.

    A batch that spans two epochs, or is larger than the set, may hold a task twice: identify requests by their place in
    the batch, not by the task.
    """
    count = len(task_set.train)
    assert step >= 0 and size >= 1 and count >= 1, f"step {step}, size {size}, {count} tasks"
    places = range(step * size, (step + 1) * size)
    epochs = {epoch: permutation(count, seed, "tasks/epoch", epoch) for epoch in {place // count for place in places}}
    return tuple(task_set.train[epochs[place // count][place % count]] for place in places)


def prompt_key(task: Task) -> object:
    """What two tasks with the same prompt have in common; hashable."""
    if isinstance(task.prompt, str):
        return task.prompt
    return tuple(tuple(sorted(part.items())) for part in task.prompt)
