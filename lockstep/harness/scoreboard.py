"""How good is the auditor? Every fault of the catalogue over many seeds, and as many clean runs.

In: which faults, how many seeds. Out: a `Case` for each run; scores.py adds them up.

A run is a laboratory that is observed step by step; the auditor looks at each step before the trainer may take it. The
fault is put in before step `onset`. What is named before that, or without a fault, is a false alarm.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lockstep.harness.faults import INJECTIONS
from lockstep.harness.injection import Injection
from lockstep.harness.laboratory import Laboratory
from lockstep.harness.networks import Networks
from lockstep.harness.setup import Setup
from lockstep.harness.subject import LaboratorySubject
from lockstep.parity.auditor import Auditor
from lockstep.parity.evidence import Finding
from lockstep.parity.fault import Layer
from lockstep.parity.floor import Floor
from lockstep.pipeline.reference import NativeReference

PATIENCE = 3
"""Steps after the onset within which a fault must be seen."""

CALIBRATION = 8
"""Batches on whose tokens the noise floor is measured."""

SAME_PAIR = 1.0
"""How many times the floor is tolerated: it is measured on the very two computations that are compared."""

CLEAN_STEPS = 6
"""Steps of a run without a fault."""


@dataclass(frozen=True, slots=True)
class Case:
    """One run. `code` None: clean. `found` None: nothing was seen; `delay` counts steps from the onset (0: at once)."""

    code: str | None
    seed: int
    found: Finding | None
    delay: int | None
    exact: bool
    false_alarm: bool = False
    steps: int = 0
    seconds: float = 0.0

    @property
    def seen(self) -> bool:
        """Whether the fault was seen, and not something before it."""
        return self.code is not None and self.found is not None and not self.false_alarm

    @property
    def right_layer(self) -> bool:
        """Whether the layer that was named is the fault's, or that of a fault which it hides."""
        named = self.found.layer if self.seen and self.found is not None else None
        return named is not None and self.code is not None and (named is Layer.of(self.code) or self.right_cause)

    @property
    def right_cause(self) -> bool:
        """Whether the fault itself was named first, or one that it hides, with this one among the evidence."""
        if not self.seen or self.found is None or self.code is None:
            return False
        if self.found.code == self.code:
            return True
        among = any(evidence.code == self.code for evidence in self.found.evidence)
        return among and self.found.code in INJECTIONS[self.code].beneath


def run(networks: Networks, seed: int, injection: Injection | None = None) -> Case:
    """Observe one laboratory until the auditor speaks, or for as long as it is given."""
    started = time.perf_counter()
    setup = Setup.random(seed, **(injection.setup if injection else {}))
    code, onset = (injection.code, injection.onset) if injection else (None, 1)
    last = onset + PATIENCE - 1 if injection else CLEAN_STEPS
    with Laboratory(networks, setup) as laboratory:
        auditor = auditor_of(laboratory)
        for step in range(1, last + 1):
            finding = auditor.look(laboratory.observe())
            if finding.status != "parity":
                early = injection is None or step < onset
                seconds = time.perf_counter() - started
                return Case(code, seed, finding, step - onset, setup.exact, early, step, seconds)
            if injection and step == onset - 1:
                injection.install(laboratory)
            laboratory.advance()
    return Case(code, seed, None, None, setup.exact, steps=last, seconds=time.perf_counter() - started)


def auditor_of(laboratory: Laboratory) -> Auditor:
    """An auditor that has never seen the laboratory before; of a pair with noise it has measured the floor."""
    trainer = laboratory.trainer
    reference = NativeReference(
        trainer.model.arch,
        laboratory.history,
        {"masters": trainer.optimizer.masters},
        trainer.config.engine.dtype,
    )
    subject = LaboratorySubject(laboratory)
    if laboratory.setup.exact:
        return Auditor(reference, subject, Floor.exact())
    tokens = [
        sample
        for batch in range(CALIBRATION)
        for sample in subject.sample([replace(r, id=f"floor{batch}{r.id}") for r in laboratory.requests(-batch)])
    ]
    return Auditor(reference, subject, Floor.of(reference.calibration(tokens), SAME_PAIR))


def cases(networks: Networks, codes: Sequence[str], seeds: range, clean: range) -> Iterator[Case]:
    """All runs, one after the other: every fault of `codes` with every seed, then the clean ones."""
    for code in codes:
        for seed in seeds:
            yield run(networks, seed, INJECTIONS[code])
    for seed in clean:
        yield run(networks, seed)
