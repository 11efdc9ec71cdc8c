"""Exact paired statistics for a few seeds: no normal distribution, no asymptotics, no random numbers.

In: one difference a seed. Out: p-values by turning signs, an interval that agrees with them, Holm's adjustment.

Under the hypothesis that an arm makes no difference, each seed's difference is as likely to have the other sign. All
2^n ways to turn signs are equally likely then, and all are tried. The interval is Hartigan's: the means of all subsets
of the differences but the empty one cut the line into 2^n parts, each of which holds the centre with equal probability
(Hartigan, Using subsample values as typical values, JASA 64, 1969). Both assume differences symmetric about a centre.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOST = 16
"""Differences whose subsets are all tried; there are 65,536 then."""

NEAR = 1e-12
"""Relative: sums of the same numbers in another order count as equal."""


@dataclass(frozen=True, slots=True)
class Paired:
    """`mean` of `count` differences, `low` to `high` around it with `confidence`, two-sided `p` of no difference.

    `confidence` is what the interval has exactly: the least that such intervals have and that is at least what was
    asked for, or the most that they have.
    """

    count: int
    mean: float
    low: float
    high: float
    confidence: float
    p: float


def paired(differences: Sequence[float], confidence: float = 0.95) -> Paired:
    """All of it for the differences of 1 to `MOST` pairs, which are finite."""
    low, high, exact = interval(differences, confidence)
    return Paired(len(differences), float(np.mean(differences)), low, high, exact, sign_flip(differences))


def sign_flip(differences: Sequence[float]) -> float:
    """The fraction of all ways to turn signs that give a sum as far from 0 as the one seen, or further."""
    d = _checked(differences)
    signs = 2.0 * _subsets(len(d)) - 1.0
    far = np.abs(signs @ d)
    seen = abs(float(d.sum()))
    return float(np.mean(far >= seen - NEAR * float(np.abs(d).sum())))


def interval(differences: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """(low, high, its exact confidence) for the centre of the differences."""
    d = _checked(differences)
    chosen = _subsets(len(d))[1:]
    means = np.sort(chosen @ d / chosen.sum(1))
    parts = len(means) + 1
    outside = max(math.floor((1.0 - confidence) / 2 * parts + NEAR), 1)  # parts left out at either end
    return float(means[outside - 1]), float(means[-outside]), 1.0 - 2 * outside / parts


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted for having asked several questions (Holm 1979); in the order of the questions, each at most 1."""
    adjusted, running = [0.0] * len(p_values), 0.0
    for place, i in enumerate(np.argsort(p_values, kind="stable").tolist()):
        running = max(running, min(1.0, (len(p_values) - place) * p_values[i]))
        adjusted[i] = running
    return adjusted


def area(steps: Sequence[float], values: Sequence[float]) -> float:
    """The mean height of the broken line through the points: its area over the distance."""
    x, y = np.asarray(steps, np.float64), np.asarray(values, np.float64)
    return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum() / (x[-1] - x[0]))


def _checked(differences: Sequence[float]) -> np.ndarray:
    d = np.asarray(differences, np.float64)
    if not 1 <= len(d) <= MOST or not np.isfinite(d).all():
        raise ValueError(f"1 to {MOST} finite differences, not {differences}")
    return d


def _subsets(count: int) -> np.ndarray:
    """float64 [2^count, count] of 0 and 1: every subset, the empty one first."""
    return (np.arange(2**count)[:, None] >> np.arange(count) & 1).astype(np.float64)
