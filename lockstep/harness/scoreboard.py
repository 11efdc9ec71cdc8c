"""How good is the auditor? Every fault of the catalogue over many seeds, and as many clean runs.

In: which faults, how many seeds. Out: a `Case` for each run; scores.py adds them up.

A run is a laboratory that is observed step by step; the auditor looks at each step before the trainer may take it. The
fault is put in before step `onset`. What is named before that, or without a fault, is a false alarm.

The rules of other frameworks (rules.py) are asked about the very observations that the auditor looks at. It ends at its
first word, as a real run would; the laboratory goes on without it for as long as a rule may still be in time: to the
onset of a hard fault, to the end of the patience for a soft one, to the end of a clean run. So a rule loses nothing
because the auditor was faster, though it then sees an engine on which the auditor may have tried something.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lockstep.harness.faults import INJECTIONS
from lockstep.harness.injection import Injection
from lockstep.harness.laboratory import Laboratory
from lockstep.harness.networks import Networks
from lockstep.harness.rules import flagged
from lockstep.harness.setup import Setup
from lockstep.harness.subject import LaboratorySubject
from lockstep.parity.auditor import Auditor
from lockstep.parity.catalogue import CATALOGUE
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
    """One run. `code` None: clean. `found` None: nothing was seen; `delay` counts steps from the onset (0: at once).

    `steps`: how many the auditor looked at; `seconds` with them. `flags`: the rules that flagged a step, by name, and
    which steps, counted from the onset as `delay` is (negative: before it; of a clean run from its first step).
    """

    code: str | None
    seed: int
    found: Finding | None
    delay: int | None
    exact: bool
    false_alarm: bool = False
    steps: int = 0
    seconds: float = 0.0
    flags: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

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

    def flag_delay(self, rule: str) -> int | None:
        """Steps from the onset to the first flag of a rule; None if there was none, or one before the fault."""
        steps = self.flags.get(rule, ())
        return None if self.code is None or not steps or min(steps) < 0 else min(steps)

    def flagged_falsely(self, rule: str) -> bool:
        """Whether a rule flagged a step without a fault."""
        return any(self.code is None or step < 0 for step in self.flags.get(rule, ()))


def run(networks: Networks, seed: int, injection: Injection | None = None) -> Case:
    """Observe one laboratory until the auditor and the rules have had their time."""
    started = time.perf_counter()
    setup = Setup.random(seed, **(injection.setup if injection else {}))
    code, onset = (injection.code, injection.onset) if injection else (None, 1)
    last = onset + PATIENCE - 1 if injection else CLEAN_STEPS
    flags: defaultdict[str, list[int]] = defaultdict(list)
    case: Case | None = None
    with Laboratory(networks, setup) as laboratory:
        auditor = auditor_of(laboratory)
        for step in range(1, last + 1):
            seen = laboratory.observe()
            for rule in flagged(seen):
                flags[rule].append(step - onset)
            if case is None and (finding := auditor.look(seen)).status != "parity":
                early = injection is None or step < onset
                seconds = time.perf_counter() - started
                case = Case(code, seed, finding, step - onset, setup.exact, early, step, seconds)
            if case is not None and step >= _needed(code, onset, last):
                break
            if injection and step == onset - 1:
                injection.install(laboratory)
            laboratory.advance()
    quiet = Case(code, seed, None, None, setup.exact, steps=last, seconds=time.perf_counter() - started)
    return replace(case or quiet, flags={rule: tuple(steps) for rule, steps in flags.items()})


def _needed(code: str | None, onset: int, last: int) -> int:
    """The step up to which a rule may still be in time. A hard fault counts only at once."""
    return onset if code is not None and CATALOGUE[code].hard else last


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
