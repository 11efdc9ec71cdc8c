"""Keeps the engine supplied with problems, and hands the trainer whole batches of rollouts.

In: an engine (in this process or in its own), tasks, a buffer. Out: the groups of each step.

What a group is, problem and random numbers included, follows from its number alone, and with an engine in this process
so does everything else: the engine runs when the trainer waits, the trainer when a batch is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lockstep.core import Request, Rollout, SamplingParams, Task
from lockstep.pipeline.assembly import Parts
from lockstep.pipeline.buffer import Buffer, Group
from lockstep.tasks import batch_of

Progress = Callable[[int, int], None]
"""(rollouts of the next batch that are there, rollouts of a batch); called between steps of the engine, may raise."""


def request_name(step: int, place: int) -> str:
    """The id of the request for the problem at `place` of step `step` (from 1): the key of its random numbers."""
    return f"{step}/{place}"


def place_of(rollout: Rollout) -> tuple[int, int, int]:
    """(step, place, sample) of a rollout whose request was named by `request_name`."""
    step, place, sample = map(int, rollout.id.split("/"))
    return step, place, sample


class Sampling:
    """The problems of a run, asked in order."""

    def __init__(self, parts: Parts) -> None:
        config = parts.config
        self._parts, self._per_step = parts, config.num_prompts_per_step
        versions = config.train.num_minibatches
        self.buffer = Buffer(self._per_step, config.num_generations, config.pipeline.max_lag, versions)

    def collect(self, steps_ahead: int, progress: Progress) -> tuple[Group, ...]:
        """Run the engine until the next batch is whole; ask for at most `steps_ahead` batches, this one included."""
        engine, buffer = self._parts.engine, self.buffer
        total = self._per_step * buffer.size
        while True:
            for number in buffer.issue(steps_ahead):
                engine.add(self._request(number))
            groups = buffer.take(self._parts.trainer.version.number)
            if groups is not None:
                return groups
            if not buffer.outstanding:
                continue  # all that was whole has just been dropped: ask for more
            progress(buffer.num_finished, total)
            for rollout in engine.step():
                self._put(rollout)

    def abandon(self) -> None:
        """Take everything out of the engine; the buffer says where to go on."""
        for number in self.buffer.outstanding:
            self._parts.engine.abort(self._name(number))

    def tasks(self, groups: Sequence[Group]) -> list[Task]:
        """The problems of some groups."""
        return [self._task(group.number) for group in groups]

    def _put(self, rollout: Rollout) -> None:
        step, place, sample = place_of(rollout)
        number = (step - 1) * self._per_step + place
        if number not in self.buffer.outstanding:
            return  # of a group that was dropped
        if rollout.finish_reason == "abort":
            self.buffer.drop(number)
        else:
            self.buffer.put(number, sample, rollout)

    def _name(self, number: int) -> str:
        return request_name(number // self._per_step + 1, number % self._per_step)

    def _task(self, number: int) -> Task:
        batch = batch_of(self._parts.tasks, number // self._per_step, self._per_step, self._parts.config.seed)
        return batch[number % self._per_step]

    def _request(self, number: int) -> Request:
        config, task = self._parts.config, self._task(number)
        params = SamplingParams(**config.sampling.model_dump(), n=config.num_generations, seed=config.seed)
        prompt = tuple(self._parts.model.tokenizer.encode_prompt(task.prompt))
        return Request(self._name(number), prompt, params, task.id)
