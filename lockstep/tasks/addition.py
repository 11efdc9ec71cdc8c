"""Sums of two numbers, as one chat message.

In: the smallest and largest operand. Out: every ordered pair as a task, split.
"""

from __future__ import annotations

from lockstep.config import TaskConfig
from lockstep.core import Task
from lockstep.errors import InputError, message
from lockstep.tasks.task_set import TaskSet, split

MAX_OPERANDS = 1000
"""A million sums; more would only cost memory."""


def addition(config: TaskConfig, seed: int) -> TaskSet:
    """All a + b with a and b in `config.low..config.high`. Raises `InputError` for a range that is empty or huge."""
    operands = range(config.low, config.high + 1)
    if not 1 <= len(operands) <= MAX_OPERANDS:
        raise InputError(
            message(
                "task (addition)",
                "operands run from task.low to task.high",
                got=f"{config.low}..{config.high}",
                expected=f"low <= high and at most {MAX_OPERANDS} operands",
                do="Change task.low or task.high",
            )
        )
    tasks = [_task(a, b) for a in operands for b in operands]
    train, held_out = split("addition", tasks, config.held_out, seed)
    return TaskSet(train, held_out, "last_integer", f"built-in: {len(tasks)} sums of {config.low}..{config.high}")


def _task(a: int, b: int) -> Task:
    question = f"What is {a} + {b}? Answer with just the number."
    return Task(f"add/{a}+{b}", ({"role": "user", "content": question},), str(a + b), {"a": a, "b": b})
