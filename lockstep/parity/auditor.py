"""Watches a pair of engine and trainer step by step, and names the cause of the first thing that moves.

In: observations, one a step, in order. Out: a `Finding` each.

    observation -> structure and statements: contradictions --------------------------+
                -> engine against trainer: bits, or a sequential test over the floor --+--> nothing: parity
                                                                                       v
                     probes: semantics -> data -> weights -> cache -> path -> numerics -> objective
                                                                                       v
                            the earliest layer of those that explain the most; else undetermined

On an exact pair any differing bit is a mismatch. On others the noise floor is measured first, and a mismatch is what a
test with a stated rate of false alarms says is more than that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lockstep.parity.evidence import Evidence, Finding
from lockstep.parity.fault import Layer
from lockstep.parity.floor import Floor
from lockstep.parity.observation import Observation, Sample
from lockstep.parity.probe import ENOUGH, Look, Probe
from lockstep.parity.probes import CHEAP, DEEP, LAYER_OF
from lockstep.parity.sequential import Alarm
from lockstep.parity.side import CannotAsk, Reference, Subject

MEMORY = 3
"""Observations that are kept to compare with."""

CLOSE = 0.05
"""Causes whose explained parts differ by less than this are equally good; the earlier layer is the better answer."""


@dataclass(slots=True, eq=False)
class Auditor:
    """One audit. `reference` and `subject` may be missing: then the probes that need them are skipped, and said to be.

    `floor`: what honest computations differ by, `Floor.exact()` if by nothing; `alpha`: how often at most an audit of
    a clean pair may raise an alarm, however long it runs (of a pair with noise; an exact one never does).
    """

    reference: Reference | None = None
    subject: Subject | None = None
    floor: Floor | None = None
    alpha: float = 1e-4
    _before: tuple[Observation, ...] = ()
    _alarm: Alarm | None = None

    def look(self, observation: Observation) -> Finding:
        """What this step shows, given those before. Never raises for what an observation holds."""
        look = Look(observation, self.reference, self.subject, self._before, self._grain)
        found, skipped = _ask(CHEAP, look)
        moved = self._moved(observation)
        if moved or any(evidence.certain for evidence in found):
            deep, unable = _ask(DEEP, look)
            found, skipped = [*found, *deep], skipped | unable
        self._before = (*self._before, observation)[-MEMORY:]
        return _conclude(observation, found, moved, skipped)

    @property
    def _exact(self) -> bool:
        return self.floor is None or self.floor.is_exact

    @property
    def _grain(self) -> float:
        return 0.0 if self.floor is None else self.floor.grain

    def _moved(self, observation: Observation) -> bool:
        """Whether the two series differ by more than honest computations do, or cannot even be subtracted."""
        scored = [sample for sample in observation.samples if sample.paired]
        if any(not sample.comparable for sample in scored):
            return True
        if self._exact:
            return any(_bits_differ(sample) for sample in scored)
        assert self.floor is not None, "a pair that is not exact has a floor"
        if scored:
            p_values = [self.floor.p_value(difference(sample)) for sample in scored]
            self._alarm = (self._alarm or Alarm(self.floor.remaining(self.alpha))).fed(p_values)
        return self._alarm is not None and self._alarm.raised


def difference(sample: Sample) -> np.ndarray:
    """float64 [T]: trainer - sampler of a sample that is comparable."""
    assert sample.trainer is not None and sample.sampler is not None, "comparable"
    return sample.trainer.astype(np.float64) - sample.sampler.astype(np.float64)


def _bits_differ(sample: Sample) -> bool:
    assert sample.trainer is not None and sample.sampler is not None, "comparable"
    return bool((sample.trainer.view(np.int32) != sample.sampler.view(np.int32)).any())


def _ask(probes: Mapping[str, Probe], look: Look) -> tuple[list[Evidence], dict[str, str]]:
    """What the probes found, and which could not look. A layer that cannot win any more is not looked at."""
    found: list[Evidence] = []
    skipped: dict[str, str] = {}
    for name, probe in probes.items():
        if name in LAYER_OF and _settled(found, LAYER_OF[name]):
            break
        try:
            found += probe(look)
        except CannotAsk as cannot:
            skipped[name] = str(cannot)
    return found, skipped


def _settled(found: Sequence[Evidence], layer: Layer) -> bool:
    """Whether an earlier layer explains so much that nothing of this one could be named before it."""
    return any(e.layer.rank < layer.rank and e.explained > 1.0 - CLOSE for e in found)


def _conclude(observation: Observation, found: Sequence[Evidence], moved: bool, skipped: Mapping[str, str]) -> Finding:
    """Name the cause, or say that nobody can."""
    candidates = [e for e in found if e.certain or (moved and e.explained >= ENOUGH)]
    figures = _figures(observation)
    if not candidates:
        status = "undetermined" if moved else "parity"
        return Finding(status, observation.step, tuple(found), figures, skipped)
    best = max(1.0 if e.certain else e.explained for e in candidates)
    good = [e for e in candidates if e.certain or e.explained > best - CLOSE]
    good.sort(key=lambda e: (e.layer.rank, not e.certain, -e.explained))
    rest = sorted((e for e in found if e is not good[0]), key=lambda e: -e.explained)
    return Finding("fault", observation.step, (good[0], *rest), figures, skipped)


def _figures(observation: Observation) -> dict[str, float]:
    """Tokens compared, how many differ, mean and largest distance; NaN where nothing can be compared."""
    samples = [sample for sample in observation.comparable if sample.paired]
    if not samples:
        return {"tokens": 0.0, "differing": float("nan"), "mean": float("nan"), "max": float("nan")}
    far = np.concatenate([np.abs(difference(sample)) for sample in samples])
    return {
        "tokens": float(len(far)),
        "differing": float(np.count_nonzero(far)),
        "mean": float(far.mean()),
        "max": float(far.max()),
    }
