"""Where a replay begins: a checkpoint that is whole, or the model that the run began with and its warm start.

In: a run directory. Out: a `Learner` with the weights, moments and versions after some step of the run. Nothing is
written there.

A checkpoint will do only if no rollout after it refers to weights from before it (with ``pipeline.kv = "keep"`` kept
keys may), because those weights are not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lockstep import models
from lockstep.config import RunConfig
from lockstep.errors import InputError, ModelError, message
from lockstep.gates.parity import ParityGate
from lockstep.models.checkpoint import read_parameters
from lockstep.models.pull import Progress as Pulled
from lockstep.pipeline.assembly import history_for, require_device
from lockstep.pipeline.warm_start import warm_start
from lockstep.tasks import load_tasks
from lockstep.trace.run import RunDirectory
from lockstep.train import Trainer, checkpoint
from lockstep.train.history import WeightHistory
from lockstep.weight_update import WeightVersion

Progress = Callable[[str, int, int], None]
"""(what is being done, steps of it that are done, steps of it)."""


@dataclass(frozen=True, slots=True, eq=False)
class Student:
    """What trains, after `step` steps of the run; a `pipeline.update.Learner`. `origin` says in words whence."""

    config: RunConfig
    trainer: Trainer
    gate: ParityGate
    history: WeightHistory
    step: int
    origin: str


class Starts:
    """The states of a run that a replay can take up. `published` has the version that each step published.

    Raises `InputError` and `ModelError` if the run's model or device cannot be had.
    """

    def __init__(
        self, run: RunDirectory, config: RunConfig, published: Mapping[int, WeightVersion], on_load: Pulled | None
    ) -> None:
        require_device(config.device)
        self._run, self._config, self._published = run, config, published
        self.model = models.load(config.model, on_load)
        self.unfit: dict[Path, str] = {}  # checkpoints that were tried, and why they will not do

    def initial(self, progress: Progress) -> Student:
        """The state before the first step. Raises `InputError` if the model is not the one that the run began with."""
        config, found = self._config, self._student(0, "the initial model")
        recorded, got = (self._run.manifest().get("model") or {}).get("digest"), found.trainer.version.digest
        if got != recorded:
            do = "Give the model of the time under that name or path"
            raise InputError(
                message(f"model ({config.model})", "a replay begins with the weights that the run began with", do=do,
                        got=f"digest {got}", expected=recorded)
            )  # fmt: skip
        found.history.add(found.trainer.version, found.trainer.snapshot())
        if not config.warm_start.steps:
            return found
        tasks = load_tasks(config.task, config.seed)
        warm_start(config, self.model, tasks, found.trainer, lambda done, total: progress("warm start", done, total))
        found.history.add(found.trainer.version, found.trainer.snapshot())
        return replace(found, origin="the initial model and its warm start")

    def checkpoint(self, behind: int, beyond: int) -> Student | None:
        """The newest checkpoint that will do, with more than `beyond` and at most `behind` steps in it; or None."""
        for step, path in reversed(checkpoint.complete(self._run.checkpoints).items()):
            if beyond < step <= behind and path not in self.unfit:
                found = self._load(step, path)
                if found is not None:
                    return found
        return None

    def _load(self, step: int, path: Path) -> Student | None:
        published = self._published.get(step)
        if published is not None and self._reaches_back(step, published.number):
            self.unfit[path] = "rollouts after it refer to weights from before it"
            return None
        found = self._student(step, f"the checkpoint of step {step}")
        try:
            state = checkpoint.load(path, found.trainer)
        except ModelError as cause:  # this trainer is not used any more
            self.unfit[path] = str(cause)
            return None
        if published not in (None, state.version):
            self.unfit[path] = f"it holds version {state.version}, and step {step} published {published}"
            return None
        found.history.add(found.trainer.version, found.trainer.snapshot())
        return found

    def _reaches_back(self, step: int, number: int) -> bool:
        """Whether a rollout after `step` refers to a version before `number`; none later than the bound on age does."""
        lag = self._config.pipeline.max_lag
        later = [s for s in range(step + 1, step + 2 * lag + 1) if s in self._published]
        return any(min(record.rollout.provenance.versions) < number for s in later for record in self._run.rollouts(s))

    def _student(self, step: int, origin: str) -> Student:
        config, model = self._config, self.model
        params = read_parameters(model.path, model.arch, getattr(torch, config.engine.dtype), config.device)
        trainer = Trainer(model, params, config, config.device)
        return Student(config, trainer, ParityGate(config.parity), history_for(config), step, origin)
