"""From a batch to new weights, past the parity gate.

In: a batch and the parts of the run. Out: what was decided, the trainer's logprobs of every rollout, and the numbers.

On-policy the forward that training needs anyway *is* the audit: its logprobs are compared with the sampler's before the
optimizer may step. With several minibatches the later ones are not on-policy any more; then all rollouts are scored
first, at the weights that sampled them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lockstep.core import Decision, Logprobs
from lockstep.parity.compare import ParityResult, compare
from lockstep.pipeline.assembly import Parts
from lockstep.pipeline.metrics import Stopwatch, merge_steps
from lockstep.train.batch import Batch


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """The gate's (last) decision; `scored` at the version that sampled; metrics of the steps that were taken."""

    decision: Decision
    scored: Sequence[Logprobs]
    metrics: Mapping[str, float]


def update(parts: Parts, batch: Batch, step: int, watch: Stopwatch) -> Outcome:
    """Propose, compare, ask the gate, step; one optimizer step a minibatch. A refused proposal changes nothing."""
    config, trainer = parts.config, parts.trainer
    minibatches = batch.minibatches(config.train.num_minibatches, config.seed, step)
    scored: Sequence[Logprobs] | None = None
    result: ParityResult | None = None
    if len(minibatches) > 1:
        with watch.stage("parity"):
            scored = trainer.score(batch.rollouts)
    taken: list[tuple[int, Mapping[str, float]]] = []
    for minibatch in minibatches:
        with watch.stage("train"):
            proposal = trainer.propose(minibatch)
        with watch.stage("parity"):
            scored = proposal.trainer_logprobs if scored is None else scored
            result = compare(batch.rollouts, scored) if result is None else result
            decision = parts.gate.decide(proposal.id, result)
        if not decision.admitted:
            trainer.discard(proposal)
            return Outcome(decision, scored, result.metrics())
        with watch.stage("train"):
            published = trainer.step(proposal, decision)
        taken.append((minibatch.num_tokens, {**proposal.metrics, **published.metrics}))
    assert scored is not None and result is not None, "a batch has a minibatch"
    return Outcome(decision, scored, {**merge_steps(taken), **result.metrics()})
