"""How much better than its group each rollout was.

In: rewards (None: undecided) and the group of each. Out: float32 advantages, computed in float64.

Sums are exact (`math.fsum`), so that an advantage does not depend on the order of its group, to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from lockstep.errors import NumericsError, message

EPSILON = 1e-4
"""Added to the standard deviation, as in TRL."""

LARGEST = 1e30
"""Largest reward: differences and their multiples stay finite in float32, squares in float64."""


@dataclass(frozen=True, slots=True, eq=False)
class Advantages:
    """`values` float32 [R]; `undecided` bool [R] marks rollouts without a reward, whose advantage is 0.0.

    `reward_std` is the mean over groups of the standard deviation of their rewards; `frac_reward_zero_std` the fraction
    of groups that carry no signal (all rewards equal, or fewer than two decided).
    """

    values: np.ndarray
    undecided: np.ndarray
    reward_std: float
    frac_reward_zero_std: float


def group(rewards: np.ndarray) -> np.ndarray:
    """GRPO: (reward - mean) / (std + 1e-4), std with n - 1, as TRL has it. float64 [G], G >= 2."""
    centered = group_centered(rewards)
    return centered / (_std(centered) + EPSILON)


def group_centered(rewards: np.ndarray) -> np.ndarray:
    """Dr. GRPO: reward - mean. float64 [G]."""
    return rewards - math.fsum(rewards) / len(rewards)


def leave_one_out(rewards: np.ndarray) -> np.ndarray:
    """RLOO: reward - mean of the others, which is (reward - mean) * G / (G - 1). float64 [G], G >= 2."""
    return group_centered(rewards) * (len(rewards) / (len(rewards) - 1))


ADVANTAGES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = MappingProxyType(
    {"group": group, "group_centered": group_centered, "leave_one_out": leave_one_out}
)


def advantages(rewards: Sequence[float | None], groups: Sequence[Hashable], kind: str) -> Advantages:
    """Advantages of `rewards` [R], rollouts of equal `groups` [R] compared with one another, by `ADVANTAGES[kind]`.

    A group of equal rewards, and one with a single decided reward, gets exactly 0.0. Raises `NumericsError` for a
    reward that is not finite, or beyond `LARGEST`.
    """
    assert len(rewards) == len(groups), f"{len(rewards)} rewards for {len(groups)} rollouts"
    undecided = np.array([reward is None for reward in rewards], bool)
    values = np.array([0.0 if reward is None else reward for reward in rewards], np.float64)
    bad = np.flatnonzero(~(np.abs(values) <= LARGEST))
    if bad.size:
        raise NumericsError(
            message(
                f"reward ({bad[0]})",
                "a reward is finite",
                got=values[bad[0]],
                expected=f"a number within {LARGEST:g} of 0, or None",
                do="Mend the reward function",
            )
        )
    members: dict[Hashable, list[int]] = {}
    for index, key in enumerate(groups):
        members.setdefault(key, []).append(index)
    result = np.zeros(len(values), np.float64)
    deviations = [0.0] * len(members)
    flat = 0
    for place, indices in enumerate(members.values()):
        decided = [index for index in indices if not undecided[index]]
        own = values[decided]
        # Not by the computed deviation: the mean of three times 0.1 is not 0.1.
        if len(own) < 2 or own.min() == own.max():
            flat += 1
            continue
        result[decided] = ADVANTAGES[kind](own)
        deviations[place] = _std(group_centered(own))
    return Advantages(
        result.astype(np.float32),
        undecided,
        reward_std=math.fsum(deviations) / max(1, len(members)),
        frac_reward_zero_std=flat / max(1, len(members)),
    )


def _std(centered: np.ndarray) -> float:
    return math.sqrt(math.fsum(centered * centered) / (len(centered) - 1))
