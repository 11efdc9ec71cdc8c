"""Where a log ratio comes from: parts that sum to the total exactly, token by token.

    trainer - sampler  =  (trainer - as stated)  +  (as stated - cause 1)  +  (cause 1 - causes 1, 2)  + ...  + rest

In: a look, a finding. Out: `Breakdown`. Every series is put on one grid of multiples of 2**-40 nats (int64) before
anything is subtracted, so no rounding can hide in the sum: a logprob moves by at most 2**-41 nats, a float32 one of an
ordinary size not at all.

>>> on_grid(np.array([-0.5], np.float32)) == -(1 << 39)
array([ True])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from lockstep.parity.evidence import Evidence, Finding
from lockstep.parity.hypothesis import Hypothesis
from lockstep.parity.probe import IMPOSSIBLE, Look

UNIT = 2.0**-40
"""Nats of one step of the grid."""

WORTH = 0.05
"""Part of the distance that is left which a further cause must take away to be a part of its own."""

TRAINER, REST = "trainer less an honest reference", "not explained"


@dataclass(frozen=True, slots=True, eq=False)
class Breakdown:
    """`total` int64 [T], tokens of all samples in order, and `parts` by name, in units of 2**-40 nats."""

    total: np.ndarray
    parts: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        summed = sum(self.parts.values(), np.zeros_like(self.total))
        assert np.array_equal(summed, self.total), "the parts of a breakdown sum to its total"

    @classmethod
    def of(cls, look: Look, finding: Finding) -> Self:
        """What the finding's evidence explains, in the order in which it is named. Raises `CannotAsk`."""
        sampler = _joined([s.sampler for s in look.samples])
        trainer = _joined([s.trainer for s in look.samples])
        stated = _joined(look.score())
        parts = {TRAINER: trainer - stated}
        reached, assumed = stated, Hypothesis()
        for evidence in finding.evidence:
            merged = _merged(assumed, evidence)
            if merged is None:
                continue
            tried = _joined(look.score(merged))
            if _far(tried, sampler) > (1.0 - WORTH) * _far(reached, sampler):
                continue
            parts[evidence.code] = reached - tried
            reached, assumed = tried, merged
        parts[REST] = reached - sampler
        return cls(trainer - sampler, parts)

    def rows(self) -> list[dict[str, Any]]:
        """For each part: its name, the mean over tokens in nats, the mean of its size, and its units, summed."""
        return [_row(name, part) for name, part in (*self.parts.items(), ("total", self.total))]


def on_grid(logprobs: np.ndarray) -> np.ndarray:
    """int64: the nearest multiples of 2**-40 nats; what is impossible or not a number counts as -30 nats."""
    finite = np.nan_to_num(logprobs.astype(np.float64), nan=-IMPOSSIBLE, posinf=0.0, neginf=-IMPOSSIBLE)
    return np.rint(np.clip(finite, -1e5, 1e5) / UNIT).astype(np.int64)


def _joined(series: Sequence[np.ndarray | None]) -> np.ndarray:
    kept = [on_grid(one) for one in series if one is not None]
    return np.concatenate(kept) if kept else np.empty(0, np.int64)


def _merged(assumed: Hypothesis, evidence: Evidence) -> Hypothesis | None:
    """Both together, where they speak of different factors of the engine."""
    further = evidence.hypothesis
    if further is None or evidence.who != "sampler" or set(further.flipped) & set(assumed.flipped):
        return None
    return replace(assumed, **{name: getattr(further, name) for name in further.flipped})


def _far(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one - other).sum())


def _row(name: str, part: np.ndarray) -> dict[str, Any]:
    count = max(len(part), 1)
    return {
        "part": name,
        "mean": int(part.sum()) * UNIT / count,
        "size": int(np.abs(part).sum()) * UNIT / count,
        "units": int(part.sum()),
    }
