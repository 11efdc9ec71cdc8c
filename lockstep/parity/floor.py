"""The noise floor: by how much two honest computations of the same logprobs differ, measured, not assumed.

In: differences of honest pairs, one array a sample. Out: `Floor`, which gives a sample's difference a p-value.

Three statistics of a sample's differences d are looked at: mean |d| (anything that moves all tokens), max |d| (a few
tokens, tails), |mean d| (an offset: raw logprobs at T != 1, a lost normalisation). The smallest of their three p-values
counts, three times (Bonferroni), so that looking thrice costs no validity.

A statistic's logarithm is compared with those measured: how many of their standard deviations is it above their mean?
Ranks would be free of any distribution, but the rank of a sample that is off by a hundred floors is that of one that is
off by two, and then a hard fault takes many samples. The price is an assumption about tails. It is paid with heavy
ones (Student's t with few degrees of freedom, where the measured logarithms look normal) and with `SCALE`, and what it
comes to on clean pairs is measured: `lockstep faults score`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from lockstep.errors import InputError, message

NUM_STATISTICS = 3

SCALE = 1.5
"""How many times our own rounding another engine's may be: other kernels round in other places, as often as ours."""

NARROWEST = 0.25
"""The least standard deviation of a logarithm that is believed: a floor that was measured on few samples, or on samples
that are alike, looks narrower than it is."""

DF, LEAST = 8, 1e-15
"""Degrees of freedom of the tails, and the smallest p-value that is ever given."""

TINY = 1e-12
"""Nats below which a difference is none; logarithms need a positive number."""


@dataclass(frozen=True, slots=True, eq=False)
class Floor:
    """`mean` and `deviation` float64 [3] of the logarithms of the statistics; `grain`: mean |d| in nats, all scaled.

    `num_samples` is how many were measured; 0: nothing may differ.
    """

    num_samples: int
    mean: np.ndarray
    deviation: np.ndarray
    grain: float = 0.0

    @classmethod
    def exact(cls) -> Self:
        """The floor of a pair that is one computation."""
        return cls(0, np.full(NUM_STATISTICS, -np.inf), np.zeros(NUM_STATISTICS))

    @classmethod
    def of(cls, differences: Sequence[np.ndarray], scale: float = SCALE) -> Self:
        """The floor under `scale` times these differences. Raises `InputError` for fewer than 2, or one not finite."""
        kept = [np.asarray(d, np.float64) * scale for d in differences if len(d)]
        if len(kept) < 2 or not all(np.isfinite(d).all() for d in kept):
            raise InputError(
                message("noise floor", "it is measured on finite differences", got=f"{len(kept)} samples",
                        expected="at least two, all numbers finite", do="Score some samples twice")
            )  # fmt: skip
        logs = np.array([_logs(d) for d in kept])
        grain = float(np.abs(np.concatenate(kept)).mean())
        return cls(len(kept), logs.mean(0), np.maximum(logs.std(0, ddof=1), NARROWEST), grain)

    @property
    def is_exact(self) -> bool:
        return self.num_samples == 0

    def p_value(self, difference: np.ndarray) -> float:
        """How likely an honest sample is to be at least as far off in some statistic; at most 1."""
        assert not self.is_exact, "an exact pair is compared bit by bit"
        spread = self.deviation * np.sqrt(1 + 1 / self.num_samples)  # of a new sample around a measured mean
        tails = [_upper_tail(z) for z in (_logs(np.asarray(difference, np.float64)) - self.mean) / spread]
        return min(1.0, NUM_STATISTICS * min(tails))


def _logs(difference: np.ndarray) -> np.ndarray:
    """float64 [3]: logarithms of the statistics of a sample; infinite where a difference is not finite."""
    if not np.isfinite(difference).all():
        return np.full(NUM_STATISTICS, np.inf)
    far = np.abs(difference)
    return np.log(np.maximum([far.mean(), far.max(), abs(difference.mean())], TINY))


def _upper_tail(z: float) -> float:
    """P(T > z) for Student's t with an even number of degrees of freedom (Abramowitz and Stegun 26.7.4); never 0.

    With u = DF / (DF + z^2) and c_k the coefficients of 1 / sqrt(1 - u), P(|T| > z) is sqrt(1 - u) times the sum of
    c_k u^k from k = DF / 2 on; for small z the finite sum up to there is taken off 1 instead.
    """
    if not np.isfinite(z):
        return LEAST
    u, k = DF / (DF + z * z), np.arange(400)
    coefficients = np.concatenate(([1.0], np.cumprod((2 * k[1:] - 1) / (2 * k[1:]))))
    terms = coefficients * u**k
    if z < 1:
        return float(0.5 - 0.5 * np.sign(z) * np.sqrt(1 - u) * terms[: DF // 2].sum())
    return max(float(0.5 * np.sqrt(1 - u) * terms[DF // 2 :].sum()), LEAST)
