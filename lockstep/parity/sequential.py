"""A test that may be looked at after every step: it stops as soon as it knows, and cannot be fooled by looking often.

In: p-values, a step's at a time, each uniform or larger given those before if nothing is wrong. Out: `Alarm`.

A gambler bets against "nothing is wrong" at odds that are fair if it is true: on each p-value the stake is multiplied
by 1 - e + e b p^(b - 1), which has mean 1 for uniform p. Small b bet on tiny p-values, e on how many samples a fault
touches; several pairs bet side by side. Part of the money is put down at each step, 1 / (t (t + 1)) at step t, so that
nobody is ruined by a long clean run before the fault. Who starts with 1 reaches 1 / alpha with a probability of at most
alpha, ever (Ville 1939; Vovk and Wang 2021 on e-values; Shin, Ramdas and Rinaldo 2023 on starting anew).

>>> Alarm(alpha=0.001).fed([0.01, 0.001, 0.002, 0.003]).raised
True
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

BETS = np.array([(1.0, 0.05), (1.0, 0.2), (1.0, 0.5), (0.4, 0.05), (0.4, 0.2), (0.1, 0.05)])
"""(e, b): how many samples are believed to be touched, and how much."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """`log_stakes`: natural logs of what each bet holds (of 1 / len(BETS) each). Once raised an alarm stays raised."""

    alpha: float
    steps: int = 0
    samples: int = 0
    log_stakes: tuple[float, ...] = (-np.inf,) * len(BETS)
    raised: bool = False

    def __post_init__(self) -> None:
        assert 0 < self.alpha < 1, f"a rate of false alarms is between 0 and 1, got {self.alpha}"

    @property
    def evidence(self) -> float:
        """What 1 has become: how much less likely all of this is if nothing is wrong."""
        with np.errstate(over="ignore"):
            held = float(np.exp(np.logaddexp.reduce(np.array(self.log_stakes)) - np.log(len(BETS))))
        return held + 1 / (self.steps + 1)  # what has not been put down yet

    def fed(self, step: Sequence[float]) -> Alarm:
        """After the p-values in (0, 1] of one more step."""
        assert all(0 < p <= 1 for p in step), "a p-value is above 0 and at most 1"
        at = self.steps + 1
        share, power = BETS[:, :1], BETS[:, 1:]
        odds = 1 - share + share * power * np.array([step], np.float64) ** (power - 1)
        stakes = np.logaddexp(np.array(self.log_stakes), -np.log(at * (at + 1))) + np.log(odds).sum(1)
        after = replace(self, steps=at, samples=self.samples + len(step), log_stakes=tuple(stakes.tolist()))
        return replace(after, raised=self.raised or after.evidence >= 1 / self.alpha)
