"""Lockstep's own engine and trainer as sides of an audit.

In: a model's versions. Out: `NativeEngine`, `NativeTrainer`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from lockstep.adapters.engines.client import Client
from lockstep.adapters.engines.publisher import Publisher
from lockstep.config import EngineConfig, parse
from lockstep.core import Request, Rollout, SamplingParams
from lockstep.engine import Engine
from lockstep.errors import InputError, message
from lockstep.models.checkpoint import digest
from lockstep.parity.hypothesis import AS_STATED
from lockstep.parity.observation import Sample, Statement
from lockstep.parity.side import CannotAsk, Capability
from lockstep.pipeline.reference import NativeReference
from lockstep.weight_update import UpdatePolicy, WeightVersion

ROOM = 2048
"""Tokens of context unless a spec says otherwise, or the model was made for fewer."""


class NativeEngine:
    """The engine in this process. Settings: those of `[engine]`, and the client's."""

    def __init__(self, publisher: Publisher, settings: Mapping[str, Any]) -> None:
        """Raises `ConfigError` for a setting that the engine does not have."""
        self._publisher = publisher
        self._client, own = Client.of(settings)
        room = min(ROOM, publisher.model.arch.max_context)
        self._config: EngineConfig = parse({"engine": {"max_context": room, **own}}).engine
        self._held = publisher.held(self._config.dtype)
        self._policy = UpdatePolicy("keep", "salt" if self._client.prefix_cache != "keep" else "keep")
        version = self._version_of(publisher.newest)
        self._engine = Engine(publisher.model, self._held[version.number], version, self._config, share=True)

    def __enter__(self) -> NativeEngine:
        return self

    def __exit__(self, *_: object) -> None:
        del self._engine

    @property
    def can(self) -> frozenset[Capability]:
        return frozenset({"sample", "score", "update", "seeded"})

    def state(self) -> Statement:
        """Its settings and the label of the weights that serve."""
        own = {"logprobs_mode": "processed_logprobs", "generation_config": "vllm", "async_scheduling": False}
        settings = {**self._config.model_dump(), **own, **self._client.said}
        if self._config.head_dtype == "model":
            settings["head_dtype"] = self._config.dtype
        return Statement("lockstep engine", settings, self._engine.version.number)

    def sample(self, requests: Sequence[Request]) -> list[Sample]:
        """Completions with all of their provenance."""
        return [Sample.of(rollout) for rollout in self._run(requests)]

    def score(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """Prompt logprobs of the tokens: at the temperature, nothing else."""
        requests = []
        for i, sample in enumerate(samples):
            temperature = (sample.params.temperature if sample.params else 1.0) or 1.0
            params = SamplingParams(temperature=temperature, max_tokens=1, prompt_logprobs=True, ignore_eos=True)
            ids = (*sample.prompt_ids.tolist(), *sample.token_ids.tolist())
            requests.append(Request(f"score{i}", ids, params))
        series = []
        for sample, rollout in zip(samples, self._run(requests), strict=True):
            assert rollout.prompt_logprobs is not None, "they were asked for"
            series.append(rollout.prompt_logprobs.values[-len(sample.token_ids) :])
        return series

    def update(self, version: int) -> None:
        """The update transaction. An older version cannot be sent: the engine takes rising numbers only."""
        if self._client.weights == "lost" or version == self._engine.version.number:
            return
        if version < self._engine.version.number:
            raise CannotAsk(f"lockstep engine: it serves {self._engine.version.number}, {version} is older")
        named = self._version_of(version)
        self._engine.update_weights(self._held[version], named, self._policy, share=True)

    def reset(self) -> None:
        """Its cache is kept apart by version; nothing to empty."""
        raise CannotAsk("lockstep engine: its prefix cache is keyed by version")

    def _run(self, requests: Sequence[Request]) -> list[Rollout]:
        for request in requests:
            self._engine.add(request)
        done: dict[str, Rollout] = {}
        while self._engine.has_work:
            done |= {rollout.id: rollout for rollout in self._engine.step()}
        return [done[f"{request.id}/{i}"] for request in requests for i in range(request.params.n)]

    def _version_of(self, number: int) -> WeightVersion:
        return WeightVersion(number, digest(self._held[number]))


class NativeTrainer:
    """The trainer's forward, under the whole contract of the samples. Settings: ``dtype``, ``head_dtype``."""

    def __init__(self, publisher: Publisher, settings: Mapping[str, Any]) -> None:
        """Raises `InputError` for another setting or value."""
        allowed = {"dtype": ("bfloat16", "float32"), "head_dtype": ("float32", "model")}
        for name, value in settings.items():
            if value not in allowed.get(name, ()):
                expected = "; ".join(f"{key}={'|'.join(values)}" for key, values in allowed.items())
                raise InputError(
                    message(
                        "engine (trainer)", "no such setting", got=f"{name}={value}", expected=expected, do="Change it"
                    )
                )
        self._settings = {"dtype": "bfloat16", "head_dtype": "float32", **settings}
        dtype: Any = self._settings["dtype"]
        self._reference = NativeReference(
            publisher.model.arch, publisher.held(dtype), None, dtype, self._settings["head_dtype"]
        )
        self._number = publisher.newest

    def __enter__(self) -> NativeTrainer:
        return self

    def __exit__(self, *_: object) -> None:
        del self._reference

    @property
    def can(self) -> frozenset[Capability]:
        return frozenset({"score", "update"})

    def state(self) -> Statement:
        """Its settings and the number of its weights."""
        head = self._settings["head_dtype"]
        settings = {**self._settings, "head_dtype": self._settings["dtype"] if head == "model" else head}
        return Statement("lockstep trainer", settings, self._number)

    def score(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """Its logprobs, at the versions that the samples name, or else at its newest."""
        with torch.no_grad():
            return self._reference.score(samples, AS_STATED)

    def update(self, version: int) -> None:
        """Go on with the weights of a version."""
        self._number = version
