"""What an audit looks at: one step's samples as both sides report them, and what each side says of itself.

In: rollouts of any engine, traces of any framework. Out: `Sample`, `Statement`, `Observation`. What a source does not
have is None or empty: a probe that needs it abstains, and nothing is ever filled in.

Letters: P prompt tokens, T drawn tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lockstep.core import Request, Rollout, SamplingParams, Span, Support


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One completion. Arrays of ids are int32, of logprobs float32 (natural log).

    `prompt_ids` [P] and `token_ids` [T] are what the trainer was given; `drawn_prompt_ids` and `drawn_ids` what the
    engine says it had and drew, if it says so (None: the same). `sampler` and `trainer` are the logprobs as each side
    reports them, of whatever length they came: the trainer's at the weights that drew the tokens, as far as it knows.
    `again` are the trainer's from another pass (other microbatches) over the same weights, `current` those at its
    present weights, which the objective uses (None: the same), `reference` those of the reference policy.

    `versions` [T], `path` [T] (core.Path) and `num_cached` (prompt tokens whose keys came from the prefix cache; None:
    not said) are the engine's words; so is `spans`, which weights ran which positions (core.Provenance; empty: not
    said, then keys are those of each token's own version, or of the newest weights if `versions` is not said either).
    `params` is what was asked for, `support` what the sampler kept of each token's distribution (None: not said; where
    it truncates, a reference then computes it again). `mask` bool [T]: which tokens the loss counts. `ratio`: the
    sequence's importance weight as reported.
    """

    id: str
    prompt_ids: np.ndarray
    token_ids: np.ndarray
    sampler: np.ndarray | None = None
    trainer: np.ndarray | None = None
    params: SamplingParams | None = None
    group: str = ""
    again: np.ndarray | None = None
    current: np.ndarray | None = None
    reference: np.ndarray | None = None
    drawn_prompt_ids: np.ndarray | None = None
    drawn_ids: np.ndarray | None = None
    versions: np.ndarray | None = None
    path: np.ndarray | None = None
    num_cached: int | None = None
    spans: tuple[Span, ...] = ()
    support: Support | None = None
    finish_reason: str = ""
    text: str | None = None
    mask: np.ndarray | None = None
    ratio: float | None = None

    @classmethod
    def of(cls, rollout: Rollout, trainer: np.ndarray | None = None) -> Sample:
        """A sample of a rollout, with the trainer's logprobs if they are known."""
        origin = rollout.provenance
        return cls(
            id=rollout.id,
            prompt_ids=rollout.prompt_ids,
            token_ids=rollout.token_ids,
            sampler=rollout.sampler_logprobs.values,
            trainer=trainer,
            params=rollout.params,
            group=rollout.request_id,
            versions=origin.weight_version,
            path=origin.path,
            num_cached=None if origin.cached.any() else 0,
            spans=origin.spans,
            support=rollout.support,
            finish_reason=rollout.finish_reason,
            text=rollout.text,
        )

    @property
    def paired(self) -> bool:
        """Whether both sides say something. Only then is there anything to disagree about: a lone series is no loss, it
        is what a source has (not every rollout is scored), and nothing is ever filled in. Nor are two empty ones."""
        if self.sampler is None or self.trainer is None:
            return False
        return max(len(self.token_ids), len(self.sampler), len(self.trainer)) > 0

    @property
    def comparable(self) -> bool:
        """Whether both series are there, of the length of the tokens, and finite."""
        count = len(self.token_ids)
        series = (self.sampler, self.trainer)
        return all(s is not None and len(s) == count and bool(np.isfinite(s).all()) for s in series)


@dataclass(frozen=True, slots=True)
class Statement:
    """What one side says of itself. `settings` are resolved ones, by the names of docs/auditor.md.

    `number` and `digest` are the label of the weights as that side reports it; `tensors` digests by parameter name,
    read back from the weights it would compute with (not repeated from what it was sent). None or empty: not said.
    """

    name: str
    settings: Mapping[str, object] = field(default_factory=dict)
    number: int | None = None
    digest: str | None = None
    tensors: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """One step. `expected`: number and digest of the weights that should have served, from their publisher.

    `metrics` are those that the run reported for the step (published names, conventions of docs/auditor.md).
    `history`: ids of the samples that earlier steps trained on.
    """

    step: int
    samples: Sequence[Sample]
    engine: Statement = field(default_factory=lambda: Statement("engine"))
    trainer: Statement = field(default_factory=lambda: Statement("trainer"))
    expected: Statement = field(default_factory=lambda: Statement("publisher"))
    metrics: Mapping[str, float] = field(default_factory=dict)
    requests: Sequence[Request] = ()
    history: frozenset[str] = frozenset()

    @property
    def comparable(self) -> list[Sample]:
        """The samples of which both series can be subtracted."""
        return [sample for sample in self.samples if sample.comparable]
