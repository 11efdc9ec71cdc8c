"""The auditor beside a training, told what the engines of the migration told: tokens, logprobs, versions, cache hits.

In: each step's batch and the trainer's logprobs. Out: findings, until one names a cause.

It is told nothing of the settings, so that it has to find them in the numbers; nor whose keys a row read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from examples.migration.service import Service
from lockstep.core import Logprobs, Rollout
from lockstep.parity.auditor import Auditor
from lockstep.parity.evidence import Finding
from lockstep.parity.floor import Floor
from lockstep.parity.observation import Observation, Sample, Statement
from lockstep.pipeline import Parts
from lockstep.pipeline.reference import NativeReference
from lockstep.pipeline.update import Outcome
from lockstep.train import Batch


class Witness:
    """Stands where the loop has its watch."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._auditor = Auditor(None, None, Floor.exact())
        self.findings: list[Finding] = []

    def look(self, step: int, batch: Batch, outcome: Outcome) -> Finding | None:
        """What this step shows; None once a cause has a name."""
        if any(finding.status == "fault" for finding in self.findings):
            return None
        parts = self._parts
        held = dict(parts.history.by_number)  # the trainer may have moved on by now; what serves has not
        forward = parts.trainer.forward
        self._auditor.reference = NativeReference(parts.model.arch, held, None, forward.dtype, forward.head_dtype)
        seen = Observation(step, self._samples(batch.rollouts, outcome.scored), expected=Statement("", {}, max(held)))
        finding = self._auditor.look(seen)
        if finding.status != "parity":
            self.findings.append(finding)
        return finding

    def _samples(self, rollouts: Sequence[Rollout], scored: Sequence[Logprobs]) -> list[Sample]:
        engine = self._parts.engine
        cached = engine.cached if isinstance(engine, Service) else {}
        return [
            replace(Sample.of(rollout, series.values), spans=(), num_cached=cached.get(rollout.id))
            for rollout, series in zip(rollouts, scored, strict=True)
        ]
