"""The weights that a run directory still holds, as a reference that scores recorded tokens again.

In: a run directory, which is only read. Out: `StoredReference`; a question that needs other weights cannot be asked.

    initial model, checkpoints/, weights/ --> which version lies where: nothing is read yet
    a question --> the versions that it names, each verified by its digest --> NativeReference --> logprobs
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from lockstep import models
from lockstep.config import RunConfig
from lockstep.errors import LockstepError, ModelError, message
from lockstep.models import Model
from lockstep.models.checkpoint import digest, read_parameters
from lockstep.models.decoder import Parameters
from lockstep.parity.hypothesis import AS_STATED, Hypothesis
from lockstep.parity.observation import Sample
from lockstep.parity.side import CannotAsk
from lockstep.pipeline.assembly import require_device
from lockstep.pipeline.reference import NativeReference
from lockstep.trace.run import RunDirectory
from lockstep.trace.versions import published, saved
from lockstep.train import checkpoint
from lockstep.weight_update import WeightVersion

KEPT = 4
"""Versions that stay in memory: the present one and the older ones that probes try."""

MASTERS = "masters"


class StoredReference:
    """Implements `parity.side.Reference`. Whatever is wrong with what lies there is a reason why it cannot be asked.

    Raises `InputError` and `StorageError` if configuration or metrics cannot be read.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._weights = _Weights(run, run.config())
        self._named: dict[str, Parameters] = {}

    @property
    def versions(self) -> tuple[int, ...]:
        return tuple(sorted(self._weights))

    @property
    def names(self) -> tuple[str, ...]:
        return (MASTERS,) if self._weights.checkpoints else ()

    @property
    def parameters(self) -> tuple[str, ...]:
        return self._native.parameters

    def score(self, samples: Sequence[Sample], hypothesis: Hypothesis = AS_STATED) -> list[np.ndarray]:
        """See `parity.side.Reference.score`."""
        try:
            if hypothesis.weights.name == MASTERS:
                self._named[MASTERS] = self._weights.masters(_version_of(samples))
            return self._native.score(samples, hypothesis)
        except CannotAsk:
            raise
        except LockstepError as cause:
            raise CannotAsk(str(cause)) from cause

    @cached_property
    def _native(self) -> NativeReference:
        config, weights = self._weights.config, self._weights
        require_device(config.device)
        limit = config.train.max_tokens_per_microbatch
        arch = weights.model.arch
        return NativeReference(arch, weights, self._named, config.engine.dtype, config.engine.head_dtype, limit)


class _Weights(Mapping[int, Parameters]):
    """By version number; read when they are asked for. `checkpoints`: the folders, by the version in them."""

    def __init__(self, run: RunDirectory, config: RunConfig) -> None:
        self.config = config
        after, kept = published(run.metrics()), checkpoint.complete(run.checkpoints)
        states = saved(run.checkpoints)
        self.checkpoints = {states[step].number: path for step, path in kept.items() if step in states}
        self._whole = {v.number: (run.weights(step), v) for step, v in after.items() if run.weights(step).is_dir()}
        start = (run.manifest().get("model") or {}).get("digest")
        self._start = WeightVersion(0, start) if start else None
        self._read: dict[int, Parameters] = {}  # by time of the last question

    @cached_property
    def model(self) -> Model:
        """The run's own copy of the network if it has one, so that no name must be resolved."""
        places = [str(path) for path, _ in self._whole.values()]
        return models.load(places[-1] if places else self.config.model)

    def masters(self, number: int) -> Parameters:
        """fp32, of the checkpoint that holds them."""
        if number not in self.checkpoints:
            rule, do = "its fp32 weights must be in a checkpoint", "Set train.keep_checkpoints higher"
            held = ", ".join(map(str, sorted(self.checkpoints)))
            raise CannotAsk(message(f"masters (version {number})", rule, got="none", expected=held or "one", do=do))
        return checkpoint.masters(self.checkpoints[number])[1]

    def __getitem__(self, number: int) -> Parameters:
        if number not in self:
            raise KeyError(number)
        params = self._read.pop(number, None) or self._load(number)
        self._read[number] = params
        while len(self._read) > KEPT:
            del self._read[next(iter(self._read))]
        return params

    def __contains__(self, number: object) -> bool:
        return number in set(self)  # not by reading it

    def __iter__(self) -> Iterator[int]:
        return iter({*self._whole, *self.checkpoints, *([0] if self._start else [])})

    def __len__(self) -> int:
        return len(set(self))

    def _load(self, number: int) -> Parameters:
        dtype, device = getattr(torch, self.config.engine.dtype), self.config.device
        if number in self._whole:
            path, version = self._whole[number]
            return _verified(path, version, read_parameters(path, self.model.arch, dtype, device))
        if number in self.checkpoints:
            path = self.checkpoints[number]
            version, masters = checkpoint.masters(path)
            return _verified(path, version, {name: tensor.to(device, dtype) for name, tensor in masters.items()})
        assert self._start is not None, "it is one of them"
        path = models.load(self.config.model).path
        return _verified(path, self._start, read_parameters(path, self.model.arch, dtype, device))


def _verified(path: Path, version: WeightVersion, params: Parameters) -> Parameters:
    """The parameters, if they are the version. Raises `ModelError`."""
    got = digest(params)
    if got != version.digest:
        rule, do = f"it must hold version {version.number}", "Leave it out, or restore it"
        raise ModelError(message(f"weights ({path})", rule, got=f"digest {got}", expected=version.digest, do=do))
    return params


def _version_of(samples: Sequence[Sample]) -> int:
    """The one version that drew all tokens: the trainer scored them at it."""
    numbers = {int(number) for sample in samples if sample.versions is not None for number in sample.versions}
    if len(numbers) != 1:
        raise CannotAsk(f"masters: tokens of {len(numbers)} versions, and the trainer's fp32 weights are of one")
    return numbers.pop()
