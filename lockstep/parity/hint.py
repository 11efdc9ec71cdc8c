"""What the bits themselves show about why two sides differ. Facts about the batch, never guesses; often nothing.

In: rollouts and their pairs of series, at least one of which differs. Out: phrases, with codes of the fault catalogue.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lockstep.core import Path, Rollout

Pair = tuple[np.ndarray, np.ndarray]  # the sampler's and the trainer's logprobs of one rollout, float32 [T] each

ENOUGH = 4
"""Tokens that must agree before an agreement counts as evidence; 128 bits do not agree by chance."""


def hints(rollouts: Sequence[Rollout], pairs: Sequence[Pair]) -> tuple[str, ...]:
    """Every hint that holds, the most telling first."""
    found = (_zeros(pairs), _swapped(rollouts, pairs), _shifted(rollouts, pairs), _one_path(rollouts, pairs))
    return tuple(hint for hint in found if hint)


def _zeros(pairs: Sequence[Pair]) -> str:
    """SEM08: a missing logprob replaced by 0.0, which is the logprob of certainty."""
    sides = []
    for name, side in (("engine", 0), ("trainer", 1)):
        values = np.concatenate([pair[side][_unequal(pair)] for pair in pairs])
        if len(values) >= ENOUGH and not values.any():
            sides.append(name)
    return (
        f"every differing value of the {sides[0]} is 0.0, as if missing ones had been filled in (SEM08)"
        if sides
        else ""
    )


def _swapped(rollouts: Sequence[Rollout], pairs: Sequence[Pair]) -> str:
    """DAT04: the trainer's values of one rollout are the sampler's of another."""
    owner = {ours.tobytes(): rollout.id for rollout, (ours, _) in zip(rollouts, pairs, strict=True)}
    for rollout, pair in zip(rollouts, pairs, strict=True):
        other = owner.get(pair[1].tobytes())
        if other is not None and len(pair[1]) >= ENOUGH and _unequal(pair).any():
            return f"the trainer's values of rollout {rollout.id} are the engine's of rollout {other} (DAT04)"
    return ""


def _shifted(rollouts: Sequence[Rollout], pairs: Sequence[Pair]) -> str:
    """DAT01: the series agree when one of them is moved by one token."""
    for rollout, (ours, theirs) in zip(rollouts, pairs, strict=True):
        if len(ours) <= ENOUGH or not _unequal((ours, theirs)).any() or len(np.unique(ours)) < ENOUGH:
            continue
        if not _unequal((ours[:-1], theirs[1:])).any():
            return f"rollout {rollout.id} agrees when the trainer's series is moved one token earlier (DAT01)"
        if not _unequal((ours[1:], theirs[:-1])).any():
            return f"rollout {rollout.id} agrees when the trainer's series is moved one token later (DAT01)"
    return ""


def _one_path(rollouts: Sequence[Rollout], pairs: Sequence[Pair]) -> str:
    """PTH01 and its kin: all that differs came one way through the engine, and what came other ways agrees."""
    path = np.concatenate([rollout.provenance.path for rollout in rollouts])
    unequal = np.concatenate([_unequal(pair) for pair in pairs])
    ways = np.unique(path[unequal])
    others = np.count_nonzero(path != ways[0])
    names = {int(way): way.name.lower() for way in Path}
    if len(ways) != 1 or others < ENOUGH or int(ways[0]) not in names:
        return ""
    return f"only tokens of path {names[int(ways[0])]} differ; all {others} of other paths agree"


def _unequal(pair: Pair) -> np.ndarray:
    return pair[0].view(np.int32) != pair[1].view(np.int32)
