"""From a batch to new weights, past the parity gate.

In: a batch and the parts of the run. Out: what was decided, the trainer's logprobs of every rollout, and the numbers.

On-policy the forward that training needs anyway *is* the audit: its logprobs are compared with the sampler's before the
optimizer may step. With several minibatches the later ones are not on-policy any more; then all rollouts are scored
first, at the weights that sampled them; corrections of all minibatches start from these logprobs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lockstep.core import Decision, Logprobs
from lockstep.parity import ParityResult, compare
from lockstep.pipeline.assembly import Parts
from lockstep.pipeline.metrics import Stopwatch, merge_steps
from lockstep.train import ledger
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
    audit: _Audit | None = None
    if config.train.num_minibatches > 1:
        with watch.stage("parity"):
            scored = trainer.score(batch.rollouts)
            audit, batch = _Audit(batch, scored), replace(batch, anchor=tuple(scored))
    decision: Decision | None = None
    taken: list[tuple[int, Mapping[str, float]]] = []
    corrected: list[ledger.Entry] = []
    for minibatch in batch.minibatches(config.train.num_minibatches, config.seed, step):
        with watch.stage("train"):
            proposal = trainer.propose(minibatch)
        with watch.stage("parity"):
            audit = audit or _Audit(batch, proposal.trainer_logprobs)
            decision = parts.gate.ask(proposal.id, audit.result, num_tokens=batch.num_tokens)
        if not decision.admitted:
            trainer.discard(proposal)
            return Outcome(decision, audit.scored, {})
        with watch.stage("train"):
            published = trainer.step(proposal, decision)
        taken.append((minibatch.num_tokens, {**proposal.metrics, **published.metrics}))
        corrected += proposal.ledger
    assert audit is not None and decision is not None, "a batch has a minibatch"
    metrics = {**merge_steps(taken), **ledger.metrics(corrected), **audit.result().metrics()}
    return Outcome(decision, audit.scored, metrics)


class _Audit:
    """The comparison of one batch, made when the gate first asks for it."""

    def __init__(self, batch: Batch, scored: Sequence[Logprobs]) -> None:
        self._batch, self.scored = batch, scored
        self._result: ParityResult | None = None

    def result(self) -> ParityResult:
        if self._result is None:
            self._result = compare(self._batch.rollouts, self.scored)
        return self._result
