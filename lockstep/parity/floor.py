"""The noise floor: by how much two honest computations of the same logprobs differ, measured, not assumed.

In: differences of honest pairs, one array a sample. Out: `Floor`, which gives a sample's difference a p-value.

Three statistics of a sample's differences d are judged: mean |d| (anything that moves all tokens), |mean d| (an offset:
raw logprobs at T != 1, a lost normalisation), max |d| (a few tokens, tails). Each is divided by what it usually is at
most (the 90 % quantile of every fourth measured sample); the largest of the three is the sample's score, and the scores
of the other measured samples are what it is compared with. There is one order, so looking thrice costs no validity.

Why not the rank as it is, (1 + #{measured >= score}) / (n + 1)? It is a valid p-value of one sample. A stream that is
compared with one and the same set is another matter: if the set came out low, which it does every other time, then all
p-values are too small, for ever, and a test over the stream raises an alarm sooner or later (simulated with 48 scores
and 500 steps of 16: 13 false alarms in 200 runs where 1 in 10,000 was promised). Letting the set grow with the stream
mends that if noise never changes; but a policy that learns changes it (in a laboratory it fell to half, and to a
hundredth, in 12 steps), and then it is growth *within* the floor that raises alarms (in 5 of 40 clean runs, told
backwards). So the set is fixed, and a p-value is an upper confidence limit of the probability of such a score (Clopper
and Pearson 1934, for all scores at once; compare Bates et al. 2023 on conformal p-values given their calibration). All
limits hold together but with probability `risk`, which counts as a false alarm; if they hold, then p-values are never
too small, however long the stream and whatever came before, as long as

- the measured samples are independent draws of honest noise, on tokens like those that will be judged;
- no honest sample of the stream, given those before it, tends to score higher than `scale` times such noise;
- beyond the highest measured score the probability falls as fast as its ratio to that score to the power -`tail`.

The last is an assumption, and without it no sample could speak louder than the highest measured one: what is off by a
hundred floors would take as many samples as what is off by two. `tail=None` does without. Samples of one prompt are not
independent, and what that costs was measured: no alarm in 60 networks with 52 batches each, at rates up to 1 in 5 and
any scale down to 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from lockstep.errors import InputError, message

JUDGED = 3
"""How many of `STATISTICS`, from the first, make the score."""

STATISTICS = ("mean", "offset", "max", "growth")
"""Mean |d|; |mean d|; max |d|; mean |d| of the later half less that of the earlier. Growth is told but not judged: its
tail is heavy, and with it in the score fewer faults of the laboratory were seen at once (108 of 138 runs, not 111)."""

SCALE = 1.5
"""How many times the measured noise an honest pair may have. Measured is one rounding side against a finer one; two
sides that both round are sqrt(2) times as far apart. The rest is for tokens that are a little unlike."""

RISK = 5e-5
"""How often at most a floor is measured so low that its p-values are too small."""

TAIL = 5.0
"""Measured on small networks in bf16 against fp32: of the scores above the highest of about 70, 23 % were 1.25 times as
high or more, 8.5 % 1.5 times, 2.3 % twice, 0.2 % three times; the power -5 says 33, 13, 3.1 and 0.4 %."""

FEWEST = 8
"""Samples without which nothing can be said; with 64 and more the p-values begin to be useful (0.22 inside of what was
measured, 0.12 with 128, 0.06 with 256)."""

TINY, LEAST = 1e-12, 1e-15
"""Nats that are no difference; the smallest p-value that is ever given."""


@dataclass(frozen=True, slots=True, eq=False)
class Floor:
    """`usual` float64 [3]: the divisors of the statistics; `scores` float64 [n] ascending: natural logs, all scaled.

    `bounds` float64 [n + 1]: of a score that k of the n reach, the upper limit of its probability. `measured` float64
    [samples, 4]: `STATISTICS`, not scaled. `grain`: mean |d| in nats, scaled. `num_samples` 0: nothing may differ.
    """

    num_samples: int
    usual: np.ndarray
    scores: np.ndarray
    bounds: np.ndarray
    measured: np.ndarray
    grain: float = 0.0
    scale: float = 1.0
    risk: float = 0.0
    tail: float | None = None

    @classmethod
    def exact(cls) -> Self:
        """The floor of a pair that is one computation."""
        return cls(0, np.zeros(JUDGED), np.empty(0), np.ones(1), np.empty((0, len(STATISTICS))))

    @classmethod
    def of(
        cls, differences: Sequence[np.ndarray], scale: float = SCALE, risk: float = RISK, tail: float | None = TAIL
    ) -> Self:
        """The floor under `scale` times these differences. Raises `InputError` for fewer than 8, or one not finite."""
        assert scale > 0 and 0 < risk < 1 and (tail is None or tail > 0), "a scale, a probability, a power"
        kept = [np.asarray(d, np.float64) for d in differences if len(d)]
        if len(kept) < FEWEST or not all(np.isfinite(d).all() for d in kept):
            raise InputError(
                message("noise floor", "it is measured on finite differences", got=f"{len(kept)} samples",
                        expected=f"at least {FEWEST}, all numbers finite", do="Score some samples twice")
            )  # fmt: skip
        measured = np.array([_statistics(d) for d in kept])
        judged, first = measured[:, :JUDGED] * scale, np.arange(len(kept)) % 4 == 0
        usual = np.quantile(judged[first], 0.9, axis=0)
        usual = np.maximum(usual, max(usual.max() * 1e-3, TINY))
        scores = np.sort(_score(judged[~first], usual))
        grain = float(np.abs(np.concatenate(kept)).mean()) * scale
        return cls(len(kept), usual, scores, _bounds(len(scores), risk), measured, grain, scale, risk, tail)

    @property
    def is_exact(self) -> bool:
        return self.num_samples == 0

    def p_value(self, difference: np.ndarray) -> float:
        """How likely at most an honest sample is to score as high, whatever came before it; in (0, 1]."""
        score, reached = self._placed(difference)
        beyond = score - self.scores[-1]
        if reached or self.tail is None:
            return float(self.bounds[reached])
        return max(float(self.bounds[0] * np.exp(-self.tail * beyond)), LEAST)

    def rank_p_value(self, difference: np.ndarray) -> float:
        """(1 + measured scores as high) / (n + 1): valid for one sample, not for a stream of them."""
        return (1 + self._placed(difference)[1]) / (len(self.scores) + 1)

    def remaining(self, alpha: float) -> float:
        """What `risk` leaves of a rate of false alarms for the test. Raises `InputError` if that is nothing."""
        if alpha <= self.risk:
            raise InputError(
                message("noise floor", "its own risk is a part of the rate of false alarms",
                        got=f"a rate of {alpha:g}", expected=f"more than {self.risk:g}",
                        do="Allow more, or measure the floor with a smaller `risk`")
            )  # fmt: skip
        return alpha - self.risk

    def quantiles(self, levels: Sequence[float] = (0.5, 0.9, 0.99, 1.0)) -> dict[str, dict[float, float]]:
        """Quantiles of each statistic over the measured samples, in nats, not scaled; empty of an exact floor."""
        if self.is_exact:
            return {}
        table = np.quantile(self.measured, levels, axis=0)
        return {
            name: {level: float(row[i]) for level, row in zip(levels, table, strict=True)}
            for i, name in enumerate(STATISTICS)
        }

    def plain(self) -> dict[str, Any]:
        """What was measured, and how it is used, as plain values."""
        quantiles = {name: {f"{at:g}": v for at, v in row.items()} for name, row in self.quantiles().items()}
        return {
            "samples": self.num_samples,
            "scale": self.scale,
            "risk": self.risk,
            "tail": self.tail,
            "grain": self.grain,
            "quantiles": quantiles,
        }

    def _placed(self, difference: np.ndarray) -> tuple[float, int]:
        """A sample's score, and how many of the measured ones are as high."""
        assert not self.is_exact, "an exact pair is compared bit by bit"
        score = float(_score(_statistics(np.asarray(difference, np.float64))[None, :JUDGED], self.usual)[0])
        return score, len(self.scores) - int(np.searchsorted(self.scores, score, side="left"))


def statistics(difference: np.ndarray, sampler: np.ndarray | None = None) -> Mapping[str, float]:
    """`STATISTICS` of a sample's trainer - sampler [T] by name, in nats, `signed_mean`, and with the sampler's logprobs
    [T] `confident_disagreements`: how many tokens it was sure of that the trainer doubts."""
    d = np.asarray(difference, np.float64)
    found: dict[str, float] = dict(zip(STATISTICS, _statistics(d).tolist(), strict=True))
    found["signed_mean"] = float(d.mean()) if len(d) else 0.0
    if sampler is not None:
        found["confident_disagreements"] = float(np.count_nonzero(confident_disagreements(sampler, d)))
    return found


def confident_disagreements(sampler: np.ndarray, difference: np.ndarray) -> np.ndarray:
    """bool [T]: the sampler gave the token 0.5 or more, the trainer at least two nats less than that."""
    return (np.asarray(sampler, np.float64) >= np.log(0.5)) & (np.asarray(difference, np.float64) <= -2.0)


def _statistics(d: np.ndarray) -> np.ndarray:
    """float64 [4]: `STATISTICS` of one sample; infinite where a difference is not finite, 0 of no tokens."""
    if not len(d):
        return np.zeros(len(STATISTICS))
    if not np.isfinite(d).all():
        return np.full(len(STATISTICS), np.inf)
    far, half = np.abs(d), len(d) // 2
    growth = far[half:].mean() - far[:half].mean() if half else 0.0
    return np.array([far.mean(), abs(d.mean()), far.max(), growth])


def _score(judged: np.ndarray, usual: np.ndarray) -> np.ndarray:
    """float64 [samples]: the log of the largest ratio of a statistic to its usual value."""
    return np.log(np.maximum((judged / usual).max(1), TINY))


def _bounds(count: int, risk: float) -> np.ndarray:
    """float64 [count + 1]: P(score >= x) is at most the k-th for every x that k of `count` draws reach, for all x
    at once, but with probability `risk`.

    The risk is shared evenly by k = 0, 1, 2, 4, 7, 11 ... (half as much again each time); a k between two of them takes
    the limit of the larger one, which holds for all that reach fewer. Ties make a limit safer, never wrong.
    """
    levels = [0]
    while (following := -(-3 * (levels[-1] + 1) // 2) - 1) < count:
        levels.append(following)
    limits = [_upper_limit(k, count, risk / len(levels)) for k in levels]
    return np.array([*limits, 1.0])[np.searchsorted([*levels, count], np.arange(count + 1))]


def _upper_limit(k: int, count: int, risk: float) -> float:
    """The probability under which at most `k` hits in `count` draws have the probability `risk`; by bisection."""
    hits = np.arange(k + 1)
    ways = np.concatenate(([0.0], np.cumsum(np.log((count - hits[1:] + 1) / hits[1:]))))  # logs of count over hits
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        few = np.exp(ways + hits * np.log(middle) + (count - hits) * np.log1p(-middle)).sum()
        low, high = (middle, high) if few > risk else (low, middle)
    return high
