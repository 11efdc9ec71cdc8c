"""What a rollout is worth: the task's own check, or a reward function of the user's; and advantages.

In: tasks and their rollouts. Out: a `Grade` for each rollout, an advantage for each grade.
"""

from __future__ import annotations

from lockstep.core import Check
from lockstep.rewards.advantages import ADVANTAGES, Advantages, advantages
from lockstep.rewards.dotted_path import find
from lockstep.rewards.functions import FunctionReward
from lockstep.rewards.grade import Grade, Rewarder
from lockstep.rewards.verifiable import VerifiableReward

__all__ = [
    "ADVANTAGES",
    "Advantages",
    "FunctionReward",
    "Grade",
    "Rewarder",
    "VerifiableReward",
    "advantages",
    "load_reward",
]


def load_reward(path: str, check: Check) -> Rewarder:
    """The reward that `task.reward` names: a function by dotted path, or for the empty path the task's own check.

    Raises `InputError` if the function cannot be imported or its parameters are of no known signature.
    """
    return FunctionReward.of(find(path), path) if path else VerifiableReward(check)
