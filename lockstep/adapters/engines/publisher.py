"""Real weights, version after version, for both sides of an audit: each made from the one before by training.

In: a model. Out: parameters by version, in any dtype, and directories that other software loads.

The published weights are bfloat16 whatever a side computes in, so that a side which computes in float32 computes with
the same numbers; a checkpoint of another dtype is rounded once, and both sides are given that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lockstep.config import parse
from lockstep.errors import InputError, message
from lockstep.models import Model
from lockstep.models.checkpoint import digest, read_parameters, write_model
from lockstep.models.directory import read_json
from lockstep.parity.observation import Sample, Statement
from lockstep.train import Trainer

RATE, STEPS = 1e-4, 3
"""Learning rate and number of the supervised steps between two versions. Of the ways that were tried on SmolLM2,
several small steps move its logprobs most for what they add to its noise in bfloat16: old keys of a prefix by 0.14 nats
a token, old weights by 0.49, at a noise of 0.028 (one step at 5e-4: 0.32 and 1.6 at 0.042; at 2e-4: 0.07 and 0.29 at
0.024)."""


class Publisher:
    """Version 0 is the model as it is; `learn` makes the next. `folder`: where directories are written."""

    def __init__(self, model: Model, folder: Path, rate: float = RATE) -> None:
        self.model, self._folder, self._rate = model, folder, rate
        self._held: dict[int, dict[str, Tensor]] = {0: read_parameters(model.path, model.arch, torch.bfloat16)}
        self._digests = {0: digest(self._held[0])}
        self._trainer: Trainer | None = None

    @property
    def newest(self) -> int:
        """The number of the newest version."""
        return max(self._held)

    def learn(self, samples: Sequence[Sample]) -> int:
        """A few supervised steps on the tokens of `samples`; the number of the version that comes of them."""
        kept = [s for s in samples if len(s.token_ids)]
        if not kept:
            raise InputError(
                message("weight update", "a training step needs tokens", got="no sample with a token",
                        expected="at least one", do="Look at what the engine drew")
            )  # fmt: skip
        if self._trainer is None:
            settings = {"warm_start": {"lr": self._rate}, "train": {"max_tokens_per_microbatch": 2048}}
            self._trainer = Trainer(self.model, self._held[0], parse(settings))
        for _ in range(STEPS):
            self._trainer.supervise([s.prompt_ids.tolist() for s in kept], [s.token_ids.tolist() for s in kept])
        number = self.newest + 1
        self._held[number] = self._trainer.snapshot()
        self._digests[number] = digest(self._held[number])
        return number

    def statement(self) -> Statement:
        """Number and digest of the newest version."""
        return Statement("publisher", {}, self.newest, self._digests[self.newest])

    def path(self, number: int) -> Path:
        """An HF directory with the weights of a version; version 0 is where the model lies, if it is bfloat16 there."""
        if number == 0 and _narrow(self.model.path):
            return self.model.path
        directory = self._folder / f"version-{number}"
        if not directory.exists():
            write_model(directory, self._held[number], self.model.arch, self.model)
        return directory

    def held(self, dtype: str = "bfloat16") -> Mapping[int, Mapping[str, Tensor]]:
        """All versions, in a dtype; a view that grows with them."""
        return self._held if dtype == "bfloat16" else _Cast(self._held, getattr(torch, dtype))


def _narrow(path: Path) -> bool:
    """Whether a checkpoint holds bfloat16, so that nothing is rounded when it is read."""
    config = read_json(path / "config.json")
    return config.get("dtype", config.get("torch_dtype")) == "bfloat16"


class _Cast(Mapping[int, Mapping[str, Tensor]]):
    """Versions in another dtype, cast when they are first asked for, and kept."""

    def __init__(self, held: Mapping[int, Mapping[str, Tensor]], dtype: torch.dtype) -> None:
        self._held, self._dtype = held, dtype
        self._cast: dict[int, dict[str, Tensor]] = {}

    def __getitem__(self, number: int) -> Mapping[str, Tensor]:
        if number not in self._cast:
            self._cast[number] = {name: tensor.to(self._dtype) for name, tensor in self._held[number].items()}
        return self._cast[number]

    def __iter__(self) -> Iterator[int]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)
