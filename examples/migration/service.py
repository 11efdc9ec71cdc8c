"""An engine as a service that one configures and cannot look into: the four settings do to it what they say.

In: a correct engine, `Settings`. Out: what the loop takes for an engine, and tells nobody whose keys it reads.

    requests --> Service --> Engine          settings at their first values: an engine as the loop has its own
    rollouts <--   told  <--    |
    weights  --> keys of requests in flight, of prefixes: as `update_mode` and `cache_salt` say

The faults are put in from outside, for as long as a call lasts, and only here: the library has no switch for them. As
with the engines of the migration, each token names the weights that drew it, and nothing names the keys that it saw:
the trainer takes them for keys of the same weights, which is true exactly if no setting is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from examples.migration.settings import Settings
from lockstep import numerics
from lockstep.core import Request, Rollout, SamplingParams, Span
from lockstep.engine import Engine, draw
from lockstep.kernels.sampling import Sampled
from lockstep.weight_update import Probe, UpdatePolicy, WeightVersion

Sample = Callable[..., Sampled]


class Apart:
    """The library's own engine, as it is, but apart from evaluations: those use the loop's engine if it is idle, and
    leave prefixes in its cache, so that what is drawn next would be drawn at another time than in the other arms."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


class Service:
    """The calls of an engine that a training makes. It is no `Engine`, so that evaluations get one of their own."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine, self.settings = engine, settings
        self.cached: dict[str, int] = {}  # prompt tokens by rollout whose keys were found, as engines report them
        if settings.head_dtype != "float32":
            weights = engine.weights
            weights._head_dtype = "model"
            weights.replace(weights.serving.params, weights.serving.version, share=True)

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to run or to hand out."""
        return self._engine.has_work

    @property
    def version(self) -> WeightVersion:
        """The weights that serve."""
        return self._engine.version

    def add(self, request: Request) -> None:
        """Queue a request."""
        self._engine.add(request)

    def abort(self, request_id: str) -> list[Rollout]:
        """End a request now."""
        return [told(rollout) for rollout in self._engine.abort(request_id)]

    def step(self) -> list[Rollout]:
        """One forward; what has ended, with the logprobs that `logprobs_mode` asks for."""
        at_work = {f"{j.request.id}/{c.index}": c for j in self._engine._scheduler.jobs() for c in j.completions}
        with _reporting(self.settings.logprobs_mode):
            ended = self._engine.step()
        self.cached |= {rollout.id: at_work[rollout.id].hit for rollout in ended if rollout.id in at_work}
        return [told(rollout) for rollout in ended]

    def update_weights(
        self,
        params: Mapping[str, torch.Tensor],
        version: WeightVersion,
        policy: UpdatePolicy | None = None,
        *,
        share: bool = False,
        probe: Probe | None = None,
    ) -> None:
        """Take new weights between two steps, in flight. The policy is the service's own; nobody probes what serves."""
        del policy, probe
        remakes, salts = self.settings.update_mode == "recompute", self.settings.cache_salt == "per_version"
        keys = ("recompute" if remakes else "salt") if salts else "keep"
        self._engine.update_weights(params, version, UpdatePolicy("keep", keys), share=share)
        if remakes and not salts:
            scheduler = self._engine._scheduler
            for completion in scheduler._active[::-1]:
                scheduler._preempt(completion)


def told(rollout: Rollout) -> Rollout:
    """The rollout as one sees it who knows which weights drew each token, and takes all keys for theirs."""
    versions = rollout.provenance.weight_version
    if not len(versions):
        return rollout  # aborted before its first token
    first = len(rollout.prompt_ids) - 1
    last = np.flatnonzero(np.append(np.diff(versions), 1))  # the last token of each version, versions rising
    spans = tuple(Span(0, first + int(token) + 1, int(versions[token])) for token in last)
    return replace(rollout, provenance=replace(rollout.provenance, spans=spans))


@contextmanager
def _reporting(mode: str) -> Iterator[None]:
    """Tokens are drawn as ever; with raw logprobs another number is written down for them."""
    drawn_by = draw.sample
    if mode == "raw_logprobs":
        draw.sample = _raw(drawn_by)
    try:
        yield
    finally:
        draw.sample = drawn_by


def _raw(drawn_by: Sample) -> Sample:
    def sample(logits_NV: torch.Tensor, params: Sequence[SamplingParams], *rest: Any) -> Sampled:
        drawn = drawn_by(logits_NV, params, *rest)
        plain = numerics.log_softmax(logits_NV).gather(1, torch.from_numpy(drawn.token_ids)[:, None])
        return Sampled(drawn.token_ids, plain[:, 0].numpy(), drawn.supports)

    return sample
