"""How a probe looks: at one observation, through a reference that can assume anything and a subject that is alive.

In: an observation, the seams of side.py, what earlier steps left. Out: `Look`, which answers the questions that all
probes share: how far is a side from the honest reference, and how much of that goes away under a hypothesis?
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from lockstep.parity.evidence import Evidence
from lockstep.parity.hypothesis import AS_STATED, Hypothesis
from lockstep.parity.observation import Observation, Sample
from lockstep.parity.side import CannotAsk, Reference, Subject

Who = Literal["sampler", "trainer", "again"]
"""Whose series, by its field in `Sample`."""

ENOUGH = 0.5
"""A cause must explain at least this part of the mismatch; below, nobody can say what it was."""


IMPOSSIBLE = 30.0
"""Nats that a token counts for which one side calls impossible (outside its support): finite, so that a hypothesis
which makes it possible again explains something."""


@dataclass(slots=True, eq=False)
class Look:
    """One observation under examination. `before`: those of earlier steps, the newest last.

    `grain` float: the mean distance, in nats a token, that two honest computations have here; 0 on an exact pair.
    """

    observation: Observation
    reference: Reference | None = None
    subject: Subject | None = None
    before: Sequence[Observation] = ()
    grain: float = 0.0
    _scores: dict[int, tuple[Hypothesis, list[np.ndarray]]] = field(default_factory=dict)

    @property
    def samples(self) -> list[Sample]:
        """Those of which both series can be subtracted, and which have tokens to score."""
        return [sample for sample in self.observation.comparable if len(sample.token_ids)]

    def score(self, hypothesis: Hypothesis = AS_STATED) -> list[np.ndarray]:
        """The reference's logprobs of `samples`; the honest ones are kept. Raises `CannotAsk`."""
        if self.reference is None:
            raise CannotAsk("reference: none was given")
        if not self.samples:
            raise CannotAsk("samples: none can be compared")
        if hypothesis is AS_STATED:
            if 0 not in self._scores:
                self._scores[0] = hypothesis, self.reference.score(self.samples, hypothesis)
            return self._scores[0][1]
        return self.reference.score(self.samples, hypothesis)

    def distance(self, who: Who, series: Sequence[np.ndarray] | None = None) -> np.ndarray:
        """float64 [samples]: the sum over tokens of abs(`who` - series), what is honest noise taken off.

        Without `series`, from the honest reference.
        """
        series = self.score() if series is None else series
        pairs = ((getattr(sample, who), other) for sample, other in zip(self.samples, series, strict=True))
        return np.array([excess(mine, other, self.grain) for mine, other in pairs], np.float64)

    def deviates(self, who: Who) -> bool:
        """Whether a side is not what the honest reference says (on an exact pair: in any bit)."""
        return bool(self.distance(who).sum() > 0)

    def explained(self, hypothesis: Hypothesis, who: Who = "sampler") -> float:
        """The fraction of the distance of `who` that goes away when the reference assumes `hypothesis`; at most 1.

        Negative where it makes things worse, 0 where there is nothing to explain.
        """
        total = float(self.distance(who).sum())
        if not total > 0:
            return 0.0
        return 1.0 - float(self.distance(who, self.score(hypothesis)).sum()) / total

    def evidence(
        self,
        code: str,
        hypothesis: Hypothesis,
        why: str,
        who: Who = "sampler",
        figures: Mapping[str, object] | None = None,
    ) -> Evidence | None:
        """`Evidence` if the hypothesis explains enough; `why` ends with the figures that are added here."""
        share = self.explained(hypothesis, who)
        if share < ENOUGH:
            return None
        total, count = float(self.distance(who).sum()), sum(len(sample.token_ids) for sample in self.samples)
        said = f"{why}: this explains {share:.1%} of {total / count:.3g} nats a token"
        told = {"explained": share, "nats_per_token": total / count, **(figures or {})}
        return Evidence(code, said, share, figures=told, hypothesis=hypothesis, who=who)


Probe = Callable[[Look], Sequence[Evidence]]
"""Looks, and says what it found. Raises `CannotAsk` if it lacks what it needs: the audit says that it was skipped."""


def excess(mine: np.ndarray, other: np.ndarray, grain: float) -> float:
    """Sum of distances of one sample, less what honest noise of the same length would give; never below 0."""
    with np.errstate(invalid="ignore"):
        far = np.abs(mine.astype(np.float64) - other.astype(np.float64))
    far = np.where(mine.view(np.int32) == other.view(np.int32), 0.0, far)  # -inf on both sides is no distance
    far = np.minimum(np.nan_to_num(far, nan=IMPOSSIBLE), IMPOSSIBLE)
    return max(float(far.sum()) - grain * len(far), 0.0)
