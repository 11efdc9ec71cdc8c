"""Gives the rewards of recorded rollouts once more, and says whether they are the same.

In: the records of a step. Out: a `Regrade`. A reward is a user's function and may look at a clock, or ask a server, so
rewards that come out otherwise are a finding about that function, and none about the run's arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lockstep import checks
from lockstep.config import RunConfig
from lockstep.core import Task
from lockstep.errors import InputError, message
from lockstep.models import Model
from lockstep.pipeline.sampling import place_of
from lockstep.rewards import advantages, load_reward
from lockstep.tasks import batch_of, load_tasks
from lockstep.trace.rollouts import RolloutRecord


@dataclass(frozen=True, slots=True)
class Regrade:
    """`graded` rollouts, of which `rewards` and `advantages` are others now; `first` says where and which.

    `steady`: the function gave the same rewards when it was asked a second time. True if nothing was otherwise.
    """

    graded: int
    rewards: int
    advantages: int
    first: str = ""
    steady: bool = True


class Regrader:
    """The tasks and the reward of a run, as they are now. Raises `InputError` if they cannot be loaded any more."""

    def __init__(self, config: RunConfig, model: Model) -> None:
        self._config, self._model = config, model
        self._tasks = load_tasks(config.task, config.seed)
        self._rewarder = load_reward(config.task.reward, checks.find(self._tasks.check))

    def grade(self, step: int, records: Sequence[RolloutRecord]) -> Regrade:
        """Grade a step's rollouts again. Raises `InputError` if the tasks are no longer those of the run."""
        tasks = [self._task(step, record) for record in records]
        again = self._values(tasks, records)
        recorded = [record.reward.value if record.reward is not None else None for record in records]
        others = [i for i, pair in enumerate(zip(again, recorded, strict=True)) if _unlike(*pair)]
        if not others:
            return Regrade(len(records), 0, 0)
        gains = advantages(again, groups_of(records), self._config.loss.advantage).values
        before = np.array([record.advantage for record in records], np.float64)
        at = others[0]
        once_more = self._values(tasks, records)
        return Regrade(
            len(records),
            len(others),
            int((gains.astype(np.float64) != before).sum()),
            f"rollout {records[at].rollout.id}, {again[at]} where {recorded[at]} is recorded",
            not any(_unlike(a, b) for a, b in zip(again, once_more, strict=True)),
        )

    def _values(self, tasks: Sequence[Task], records: Sequence[RolloutRecord]) -> list[float | None]:
        grades = self._rewarder.grade(tasks, [record.rollout for record in records])
        return [grade.reward.value for grade in grades]

    def _task(self, step: int, record: RolloutRecord) -> Task:
        """The task of a rollout's place in the run; it must be the one that is recorded, prompt and all."""
        rollout, config = record.rollout, self._config
        asked, place, _ = place_of(rollout)
        task = batch_of(self._tasks, asked - 1, config.num_prompts_per_step, config.seed)[place]
        prompt = self._model.tokenizer.encode_prompt(task.prompt)
        if task.id != rollout.task_id or prompt != rollout.prompt_ids.tolist():
            raise InputError(
                message(
                    f"task (step {step}, rollout {rollout.id})", "rewards are given again for the tasks of the run",
                    got=f"task {task.id}, a prompt of {len(prompt)} tokens",
                    expected=f"task {rollout.task_id}, the {len(rollout.prompt_ids)} tokens of its prompt",
                    do="Put back the data of the time, or leave out --rewards",
                )
            )  # fmt: skip
        return task


def groups_of(records: Sequence[RolloutRecord]) -> list[str]:
    """What the rollouts of one prompt share: the id of the request."""
    return [record.rollout.request_id for record in records]


def _unlike(now: float | None, then: float | None) -> bool:
    """Whether two rewards differ in a bit, or in being decided."""
    if now is None or then is None:
        return now is not then
    return np.float64(now).tobytes() != np.float64(then).tobytes()
