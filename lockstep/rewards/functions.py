"""Reward functions of the user's, sync or async, in any of the shapes of `arguments.py`.

In: a function; tasks and rollouts. Out: grades.

A function returns a number, a `Verdict` or None for no signal; verl's may return a mapping with a ``score``. What it
raises or returns amiss costs the one rollout its signal and is named in the grade. A TRL function that raises is asked
again for each rollout alone, so that one text it cannot cope with does not cost the batch its signal.
"""

from __future__ import annotations

import asyncio
import inspect
import numbers
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from lockstep.core import Reward, Rollout, Task, Verdict
from lockstep.errors import Interrupted, LockstepError, boundary, message
from lockstep.rewards.advantages import LARGEST
from lockstep.rewards.arguments import Arguments, Signature, columns_of, plain, trl, verl
from lockstep.rewards.grade import Grade, by_verdict, failed, require_pairs


@dataclass(frozen=True, slots=True)
class _Failure:
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class FunctionReward:
    """Rewards what `function` says."""

    function: Callable[..., Any]
    signature: Signature

    @classmethod
    def of(cls, function: Callable[..., Any], path: str) -> FunctionReward:
        """Recognise `function`. Raises `InputError` for parameters of no known shape."""
        return cls(function, Signature.of(function, path))

    @property
    def name(self) -> str:
        """What the reward is called in metrics."""
        return getattr(self.function, "__name__", type(self.function).__name__)

    def grade(self, tasks: Sequence[Task], rollouts: Sequence[Rollout]) -> list[Grade]:
        """One grade for each rollout. Raises `InputError` if the function needs a column that no task has."""
        require_pairs(tasks, rollouts)
        if not rollouts:
            return []
        if self.signature.shape == "trl":
            results = self._together(tasks, rollouts)
        else:
            arguments = verl if self.signature.shape == "verl" else plain
            results = self._each([arguments(task, rollout) for task, rollout in zip(tasks, rollouts, strict=True)])
        return [self._grade(rollout, result) for rollout, result in zip(rollouts, results, strict=True)]

    def _together(self, tasks: Sequence[Task], rollouts: Sequence[Rollout]) -> list[Any]:
        columns = columns_of(tasks)
        (result,) = self._each([trl(tasks, rollouts, columns)])
        if isinstance(result, _Failure) and len(rollouts) > 1:
            pairs = zip(tasks, rollouts, strict=True)
            alone = self._each([trl([task], [rollout], columns) for task, rollout in pairs])
            return [self._listed(one, 1)[0] for one in alone]
        return self._listed(result, len(rollouts))

    def _listed(self, result: Any, count: int) -> list[Any]:
        """The result of a TRL function as a list of `count`; for anything else every rollout failed."""
        if isinstance(result, (_Failure, BaseException)):
            return [result] * count
        values = result.tolist() if isinstance(result, (np.ndarray, Tensor)) else result
        if isinstance(values, (list, tuple)) and len(values) == count:
            return list(values)
        got = f"{len(values)} values" if isinstance(values, (list, tuple)) else type(values).__name__
        text = self._says("one reward for each completion", got, f"a list of {count}")
        return [_Failure("wrong_count", text)] * count

    def _each(self, calls: Sequence[Arguments]) -> list[Any]:
        """What the function returns or raises for each of `calls`; awaitables run together, results keep the order."""
        results = [self._attempt(self.signature.choose(arguments)) for arguments in calls]
        return _run(self._finish(results)) if any(map(inspect.isawaitable, results)) else results

    def _attempt(self, arguments: Arguments) -> Any:
        try:
            with boundary(self._who):
                return self.function(**arguments)
        except LockstepError as failure:
            return _failure(failure)

    async def _finish(self, results: list[Any]) -> list[Any]:
        async def one(result: Awaitable[Any]) -> Any:
            try:
                with boundary(self._who):
                    return await result
            except LockstepError as failure:
                return _failure(failure)

        places = [i for i, result in enumerate(results) if inspect.isawaitable(result)]
        # return_exceptions: a function that cancels itself is data too; cancelling *us* still raises.
        finished = await asyncio.gather(*(one(results[i]) for i in places), return_exceptions=True)
        for i, result in zip(places, finished, strict=True):
            if isinstance(result, Interrupted):
                raise result
            results[i] = result
        return results

    def _grade(self, rollout: Rollout, result: Any) -> Grade:
        if result is None:
            return by_verdict(self.name, rollout, Verdict("abstain", "none", f"{self.name}@0"))
        if isinstance(result, Verdict):
            return by_verdict(self.name, rollout, result)
        if isinstance(result, _Failure):
            return failed(self.name, rollout, result.code, result.text)
        if isinstance(result, BaseException):
            return failed(self.name, rollout, type(result).__name__, f"{self._who}: {type(result).__name__}")
        extra: dict[str, float | None] = {}
        if self.signature.shape == "verl" and isinstance(result, Mapping):
            extra = {f"{self.name}/{key}": _number(part) for key, part in result.items() if key != "score"}
            result = result.get("score")
        value = _number(result)
        if value is None:
            # Other objects are named by their type, for their `repr` is foreign too (and fails for long integers).
            got = repr(result)[:80] if type(result) in (float, str) else type(result).__name__
            text = self._says("a reward is a finite number", got, f"a number within {LARGEST:g} of 0, or None")
            return failed(self.name, rollout, "not_a_number", text)
        logged = {key: part for key, part in extra.items() if part is not None}
        return Grade(Reward(rollout.id, value, {self.name: value, **logged}), None)

    @property
    def _who(self) -> str:
        return f"reward function ({self.signature.path})"

    def _says(self, rule: str, got: str, expected: str) -> str:
        return message(self._who, rule, got=got, expected=expected, do="Mend the function")


def _number(value: Any) -> float | None:
    """`value` as a float, or None for what is no number, not finite or too large."""
    if not isinstance(value, (numbers.Real, np.bool_)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if abs(number) <= LARGEST else None  # false for NaN as well


def _failure(failure: LockstepError) -> _Failure:
    if isinstance(failure, Interrupted):
        raise failure
    return _Failure(type(failure.__cause__ or failure).__name__, str(failure))


def _run(work: Coroutine[Any, Any, list[Any]]) -> list[Any]:
    """Run `work` to its end, also where a loop is running already (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
