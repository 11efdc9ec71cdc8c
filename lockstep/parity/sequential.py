"""A test that may be looked at after every step: it stops as soon as it knows, and cannot be fooled by looking often.

In: p-values, a step's at a time. Out: `Alarm`, whose rate of false alarms is `alpha` over any number of steps, if each
p-value is uniform or larger given all those before it and nothing is wrong. `Floor.p_value` is made to be that of one
fixed calibration; a rank among the measured is not (see there).

A gambler bets against "nothing is wrong" at odds that are fair if it is true. A bet on a threshold multiplies the share
e of its stake by 1 / q if p <= q and loses it otherwise; one on a power multiplies it by b p^(b - 1). Both have mean 1
for uniform p, and at most 1 for larger. Small q and b bet on tiny p-values, e on how many samples a fault touches; they
all bet side by side. Part of the money is put down at each step, 1 / (t (t + 1)) at step t, so that nobody is ruined by
a long clean run before the fault. Who starts with 1 reaches 1 / alpha with a probability of at most alpha, ever (Ville
1939; Vovk and Wang 2021 on e-values; Shin, Ramdas and Rinaldo 2023 on starting anew). An alarm that is raised stays
raised: to begin again is to make a new `Alarm`, with a new alpha.

How many samples it takes, in one step, at alpha = 5e-5, if all have the p-value (after 100 clean steps in brackets):

    1/65: 4 (6)   1/257: 3 (5)   0.22 (higher than 48 measured): 11 (17)   0.06 (than 192): 6 (9)   1e-6: 2 (3)

>>> Alarm(alpha=0.001).fed([0.01, 0.001, 0.002, 0.003]).raised
True
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

THRESHOLDS = (
    *((0.95, 2.0**-k) for k in range(1, 9)),
    *((0.3, 2.0**-k) for k in range(3, 12, 2)),
    *((0.1, 2.0**-k) for k in range(6, 17, 2)),
)
"""(e, q): nearly all samples are touched, some are, few are; e is never 1, for a stake that is lost is lost. The limits
that a floor of 48 to 1,000 scores gives lie between 1 / 4 and 1 / 64."""

POWERS = ((1.0, 0.5), (1.0, 0.2), (0.1, 0.05))
"""(e, b); they win without a limit as p falls, so that one sample may be enough."""

NUM_BETS = len(THRESHOLDS) + len(POWERS)


@dataclass(frozen=True, slots=True)
class Alarm:
    """`log_stakes`: natural logs of what each bet holds (of 1 / NUM_BETS each). Once raised an alarm stays raised."""

    alpha: float
    steps: int = 0
    samples: int = 0
    log_stakes: tuple[float, ...] = (-np.inf,) * NUM_BETS
    raised: bool = False

    def __post_init__(self) -> None:
        assert 0 < self.alpha < 1, f"a rate of false alarms is between 0 and 1, got {self.alpha}"

    @property
    def evidence(self) -> float:
        """What 1 has become: how much less likely all of this is if nothing is wrong."""
        with np.errstate(over="ignore"):
            held = float(np.exp(np.logaddexp.reduce(np.array(self.log_stakes)) - np.log(NUM_BETS)))
        return held + 1 / (self.steps + 1)  # what has not been put down yet

    def fed(self, step: Sequence[float]) -> Alarm:
        """After the p-values in (0, 1] of one more step."""
        assert all(0 < p <= 1 for p in step), "a p-value is above 0 and at most 1"
        at = self.steps + 1
        gains = np.log(odds(np.array(step, np.float64))).sum(1)
        stakes = np.logaddexp(np.array(self.log_stakes), -np.log(at * (at + 1))) + gains
        after = replace(self, steps=at, samples=self.samples + len(step), log_stakes=tuple(stakes.tolist()))
        return replace(after, raised=self.raised or after.evidence >= 1 / self.alpha)


def odds(p: np.ndarray) -> np.ndarray:
    """float64 [NUM_BETS, N]: by what each bet multiplies its stake for each p-value."""
    shares, thresholds = np.array(THRESHOLDS)[:, :1], np.array(THRESHOLDS)[:, 1:]
    parts, powers = np.array(POWERS)[:, :1], np.array(POWERS)[:, 1:]
    on_thresholds = 1 - shares + shares * (p <= thresholds) / thresholds
    return np.concatenate((on_thresholds, 1 - parts + parts * powers * p ** (powers - 1)))
