"""The auditor beside a run: cheap probes at every step, all of them when something has moved.

In: a step's batch, what was decided about it. Out: a `Finding`; anything but parity is a line of parity/findings.jsonl.

    batch, trainer's logprobs --> Auditor --> parity: nothing is written
                                     |  a contradiction, or the gate has refused: probes with the weights that are held
                                     +--> the cause by name, its evidence, the setting to change
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import orjson

from lockstep.core import Decision
from lockstep.models.decoder import Parameters
from lockstep.parity.auditor import Auditor
from lockstep.parity.evidence import Finding
from lockstep.parity.floor import Floor
from lockstep.parity.observation import Observation, Sample, Statement
from lockstep.parity.verdict import plain
from lockstep.pipeline.reference import NativeReference
from lockstep.pipeline.update import Outcome
from lockstep.trace.durable import append_line
from lockstep.trace.metrics import plain as jsonable
from lockstep.train import Trainer
from lockstep.train.batch import Batch
from lockstep.train.history import WeightHistory

REMEMBERED = 8
"""Steps whose samples are known again if a batch is served twice."""


class _Held(Mapping[int, Parameters]):
    """The versions that can be scored with: those of the history, and the trainer's own."""

    def __init__(self, trainer: Trainer, history: WeightHistory) -> None:
        self._trainer, self._history = trainer, history

    def _all(self) -> dict[int, Parameters]:
        return {**self._history.by_number, self._trainer.version.number: self._trainer.params}

    def __getitem__(self, number: int) -> Parameters:
        return self._all()[number]

    def __iter__(self) -> Iterator[int]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


class Watch:
    """Looks at every step of one run, and writes into `folder` what is not parity."""

    def __init__(self, trainer: Trainer, history: WeightHistory, folder: Path) -> None:
        self._trainer, self._folder = trainer, folder
        config = trainer.config
        reference = NativeReference(
            trainer.model.arch,
            _Held(trainer, history),
            {"masters": trainer.optimizer.masters},
            config.engine.dtype,
            config.engine.head_dtype,
            config.train.max_tokens_per_microbatch,
        )
        self._auditor = Auditor(reference, None, Floor.exact())
        self._on_policy = config.pipeline.max_lag == 0 and config.train.num_minibatches == 1
        self._ids: list[frozenset[str]] = []

    def look(self, step: int, batch: Batch, outcome: Outcome) -> Finding:
        """What this step shows. Refused steps are looked at before anything has changed, so all probes can score."""
        samples = [
            Sample.of(rollout, scored.values if scored is not None else None)
            for rollout, scored in zip(batch.rollouts, outcome.scored, strict=True)
        ]
        version = self._trainer.version
        # On policy, a refused batch should have come from the very weights that the trainer still has.
        due = self._on_policy and outcome.decision.outcome != "admit"
        finding = self._auditor.look(
            Observation(
                step=step,
                samples=samples,
                trainer=Statement("trainer", {}, version.number, version.digest),
                expected=Statement("publisher", {}, version.number, version.digest) if due else Statement("publisher"),
                metrics=outcome.metrics if self._on_policy else {},
                history=frozenset().union(*self._ids),
            )
        )
        self._ids = [*self._ids, frozenset(sample.id for sample in samples)][-REMEMBERED:]
        if finding.status != "parity":
            self._folder.mkdir(parents=True, exist_ok=True)
            append_line(self._folder / "findings.jsonl", orjson.dumps(jsonable(plain(finding))) + b"\n")
        return finding


def with_cause(decision: Decision, finding: Finding) -> Decision:
    """A refusal whose evidence names the cause that the audit found."""
    return Decision(decision.outcome, decision.subject, decision.reason, {**decision.evidence, "audit": plain(finding)})
