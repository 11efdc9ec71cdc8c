"""From a batch to new weights, past the parity gate.

In: a batch and the parts of the run. Out: what was decided, the trainer's logprobs of every rollout, and the numbers.

    log r = (trainer at the sampling version - sampler)  +  (trainer now - trainer at the sampling version)
          =  mismatch, which must be 0 in every bit      +   update, which is honest staleness

On-policy the forward that training needs anyway *is* the audit: its logprobs are compared with the sampler's before the
optimizer may step. Tokens of older weights are scored again at the weights that sampled them, over keys of the weights
that wrote those. With several minibatches the later ones are not on-policy any more; then all rollouts are scored
first; corrections of all minibatches start from these logprobs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from lockstep.config import RunConfig
from lockstep.core import Decision, Logprobs, Rollout
from lockstep.gates.parity import ParityGate
from lockstep.numerics import k3
from lockstep.parity import ParityResult, compare
from lockstep.pipeline.metrics import Stopwatch, merge_steps
from lockstep.train import Trainer, ledger
from lockstep.train.batch import Batch
from lockstep.train.history import WeightHistory
from lockstep.train.replay import SpanScorer


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """The gate's (last) decision; `scored` at the version that sampled; metrics of the steps that were taken."""

    decision: Decision
    scored: Sequence[Logprobs]
    metrics: Mapping[str, float]


class Learner(Protocol):
    """The parts of a run that an update needs: no engine, no tasks. `history` holds the versions that a batch names."""

    @property
    def config(self) -> RunConfig: ...

    @property
    def trainer(self) -> Trainer: ...

    @property
    def gate(self) -> ParityGate: ...

    @property
    def history(self) -> WeightHistory: ...


def update(parts: Learner, batch: Batch, step: int, watch: Stopwatch) -> Outcome:
    """Propose, compare, ask the gate, step; one optimizer step a minibatch. A refused proposal changes nothing."""
    config, trainer = parts.config, parts.trainer
    audit: _Audit | None = None
    if config.train.num_minibatches > 1:
        with watch.stage("parity"):
            scored = trainer.score(batch.rollouts)
            audit, batch = _Audit(parts, batch, scored), replace(batch, anchor=tuple(scored))
    decision: Decision | None = None
    taken: list[tuple[int, Mapping[str, float]]] = []
    corrected: list[ledger.Entry] = []
    for minibatch in batch.minibatches(config.train.num_minibatches, config.seed, step):
        with watch.stage("train"):
            proposal = trainer.propose(minibatch)
        with watch.stage("parity"):
            audit = audit or _Audit(parts, batch, proposal.trainer_logprobs)
            decision = parts.gate.ask(proposal.id, audit.result, num_tokens=batch.num_tokens)
        if not decision.admitted:
            trainer.discard(proposal)
            return Outcome(decision, audit.scored, {})
        with watch.stage("train"):
            published = trainer.step(proposal, decision)
        taken.append((minibatch.num_tokens, {**proposal.metrics, **published.metrics}))
        corrected += proposal.ledger
    assert audit is not None and decision is not None, "a batch has a minibatch"
    metrics = {**merge_steps(taken), **ledger.metrics(corrected), **audit.result().metrics(), **audit.update_metrics()}
    return Outcome(decision, audit.scored, metrics)


class _Audit:
    """The comparison of one batch. `now` are the trainer's logprobs before it steps; made before it steps."""

    def __init__(self, parts: Learner, batch: Batch, now: Sequence[Logprobs]) -> None:
        self._batch, self._now = batch, now
        self.scored = _at_sampling(parts, batch.rollouts, now)
        self._result: ParityResult | None = None

    def result(self) -> ParityResult:
        if self._result is None:
            self._result = compare(self._batch.rollouts, self.scored)
        return self._result

    def update_metrics(self) -> dict[str, float]:
        """The part of the log ratio that comes from newer weights, over all tokens, in float64."""
        for now, then in zip(self._now, self.scored, strict=True):
            now.contract.require(then.contract, ignore_version=True)
        now, then = (np.concatenate([p.values for p in side], dtype=np.float64) for side in (self._now, self.scored))
        change = now - then
        return {
            "update/mean_abs_log_ratio": float(np.abs(change).mean()),
            "update/max_abs_log_ratio": float(np.abs(change).max()),
            "update/kl": float(k3(change).mean()),
        }


def _at_sampling(parts: Learner, rollouts: Sequence[Rollout], now: Sequence[Logprobs]) -> list[Logprobs]:
    """The trainer's logprobs at the weights that sampled: `now`, or where older weights had a hand in it, replayed."""
    number = parts.trainer.version.number
    stale = [i for i, rollout in enumerate(rollouts) if rollout.provenance.versions != {number}]
    scored = list(now)
    if stale:
        limit = parts.config.train.max_tokens_per_microbatch
        scorer = SpanScorer(parts.trainer.forward, parts.history.by_number, limit)
        for i, logprobs in zip(stale, scorer.score([rollouts[i] for i in stale]), strict=True):
            scored[i] = logprobs
    return scored
