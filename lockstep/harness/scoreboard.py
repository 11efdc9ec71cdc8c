"""How good is the auditor? Every fault of the catalogue over many seeds, and as many clean runs.

In: which faults, how many seeds. Out: a `Case` for each run; scores.py adds them up.

A run is a laboratory that is observed step by step; the auditor looks at each step before the trainer may take it. The
fault is put in before step `onset`. What is named before that, or without a fault, is a false alarm.
"""

from __future__ import annotations

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
from lockstep.parity.floor import Floor
from lockstep.pipeline.reference import NativeReference

PATIENCE = 3
"""Steps after the onset within which a fault must be seen."""

CALIBRATION = 8
"""Batches on whose tokens the noise floor is measured."""

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


def run(networks: Networks, seed: int, injection: Injection | None = None) -> Case:
    """Observe one laboratory until the auditor speaks, or for as long as it is given."""
    setup = Setup.random(seed, **(injection.setup if injection else {}))
    code, onset = (injection.code, injection.onset) if injection else (None, 1)
    last = onset + PATIENCE - 1 if injection else CLEAN_STEPS
    with Laboratory(networks, setup) as laboratory:
        auditor = auditor_of(laboratory)
        for step in range(1, last + 1):
            finding = auditor.look(laboratory.observe())
            if finding.status != "parity":
                early = injection is None or step < onset
                return Case(code, seed, finding, step - onset, setup.exact, early)
            if injection and step == onset - 1:
                injection.install(laboratory)
            laboratory.advance()
    return Case(code, seed, None, None, setup.exact)


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
        for sample in subject.sample([replace(r, id=f"floor{batch}{r.id}") for r in laboratory.requests(0)])
    ]
    return Auditor(reference, subject, Floor.of(reference.calibration(tokens)))


def cases(networks: Networks, codes: Sequence[str], seeds: range, clean: range) -> Iterator[Case]:
    """All runs, one after the other: every fault of `codes` with every seed, then the clean ones."""
    for code in codes:
        for seed in seeds:
            yield run(networks, seed, INJECTIONS[code])
    for seed in clean:
        yield run(networks, seed)
