"""The engine of a laboratory as an audit may use it: through the same, possibly broken, ways as the run itself.

In: a laboratory. Out: `LaboratorySubject`, a `parity.side.Subject`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lockstep.core import Request, SamplingParams
from lockstep.harness.laboratory import Laboratory
from lockstep.parity.observation import Sample, Statement
from lockstep.parity.side import Capability


class LaboratorySubject:
    """Samples, scores by prefill, takes weights again, forgets its cache."""

    def __init__(self, laboratory: Laboratory) -> None:
        self._laboratory = laboratory

    @property
    def can(self) -> frozenset[Capability]:
        return frozenset({"sample", "score", "update", "reset", "seeded"})

    def state(self) -> Statement:
        """What the engine says of itself."""
        return self._laboratory.statement()

    def sample(self, requests: Sequence[Request]) -> list[Sample]:
        """Completions as they arrive at the trainer's door."""
        laboratory = self._laboratory
        asked = list(requests)
        for hook in laboratory.hooks.requests:
            asked = hook(asked)
        samples = [laboratory.sample_of(drawn) for drawn in laboratory.run_engine(asked)]
        for hook in laboratory.hooks.transport:
            samples = hook(samples)
        return samples

    def score(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """Logprobs of the tokens as the engine's prefill gives them, as part of a prompt: temperature, nothing else."""
        requests = []
        for i, sample in enumerate(samples):
            temperature = sample.params.temperature if sample.params else 1.0
            params = SamplingParams(temperature=temperature, max_tokens=1, prompt_logprobs=True, ignore_eos=True)
            ids = (*sample.prompt_ids.tolist(), *sample.token_ids.tolist())
            requests.append(Request(f"score{i}", ids, params))
        found = [rollout.prompt_logprobs for rollout, _ in self._laboratory.run_engine(requests)]
        series = []
        for sample, logprobs in zip(samples, found, strict=True):
            assert logprobs is not None, "they were asked for"
            series.append(logprobs.values[-len(sample.token_ids) :])
        return series

    def update(self, version: int) -> None:
        """The weights of `version` once more, by the way of all weights."""
        self._laboratory.reinstall(version)

    def reset(self) -> None:
        """Forget the prefix cache."""
        self._laboratory.reset()
