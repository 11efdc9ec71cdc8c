"""Small random models of every family, with as many versions of weights as a scenario wants.

In: a family, a dtype. Out: a `Network`: engines over it, and trainers and replays that judge what these engines drew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lockstep import models
from lockstep.config import EngineConfig, parse
from lockstep.core import Logprobs, Rollout
from lockstep.engine import Engine
from lockstep.models import tiny
from lockstep.models.checkpoint import digest
from lockstep.train import SpanScorer, Trainer
from lockstep.weight_update import WeightVersion

FAMILIES = ("llama", "qwen2", "qwen3")
DTYPES = ("float32", "bfloat16")
CONTENTS = 3  # different weights; versions may come back to old ones


@dataclass(eq=False, slots=True)
class Network:
    """A random model of about 100,000 parameters, in one dtype."""

    model: models.Model
    dtype: str
    _params: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    _digests: dict[int, str] = field(default_factory=dict)
    _trainers: dict[int, Trainer] = field(default_factory=dict)

    def weights(self, content: int) -> dict[str, Tensor]:
        """Weights number `content`; nobody may change them."""
        if content not in self._params:
            drawn = tiny.random_parameters(self.model.arch, content)
            self._params[content] = {name: tensor.to(getattr(torch, self.dtype)) for name, tensor in drawn.items()}
            self._digests[content] = digest(self._params[content])
        return self._params[content]

    def version(self, number: int, content: int) -> WeightVersion:
        """The version `number` of a run that serves `content` then."""
        self.weights(content)
        return WeightVersion(number, self._digests[content])

    def engine(self, **settings: Any) -> Engine:
        """An engine that serves version 0, content 0."""
        config = EngineConfig(**{"dtype": self.dtype, **settings})
        return Engine(self.model, self.weights(0), self.version(0, 0), config, share=True)

    def replayed(self, rollouts: Sequence[Rollout], contents: Mapping[int, int]) -> list[Logprobs]:
        """What a replay of their spans gives; `contents` says what each version number served."""
        versions = {number: self.weights(content) for number, content in contents.items()}
        return SpanScorer(self._trainer(0).forward, versions, 256).score(rollouts)

    def trained(self, rollouts: Sequence[Rollout], content: int) -> list[Logprobs]:
        """What a trainer with these weights gives in its packed forward (its version is called 0)."""
        return self._trainer(content).score(rollouts)

    def _trainer(self, content: int) -> Trainer:
        if content not in self._trainers:
            config = parse({"engine": {"dtype": self.dtype}, "train": {"max_tokens_per_microbatch": 256}})
            self._trainers[content] = Trainer(self.model, self.weights(content), config)
        return self._trainers[content]


class Networks:
    """Networks by family and dtype, built in `directory` when they are first asked for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._models: dict[str, models.Model] = {}
        self._made: dict[tuple[str, str], Network] = {}

    def get(self, family: Any, dtype: str) -> Network:
        """The network of a family in a dtype."""
        if family not in self._models:
            path = tiny.build_random(self._directory / family, tiny.small(family, vocab_size=61))
            self._models[family] = models.load(str(path))
        if (family, dtype) not in self._made:
            self._made[family, dtype] = Network(self._models[family], dtype)
        return self._made[family, dtype]
