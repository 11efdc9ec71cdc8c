"""A reward that an untrained model earns at once, now more, now less."""

from __future__ import annotations


def vowels(task, rollout) -> float:
    """The part of the text that is vowels."""
    return sum(letter in "aeiou" for letter in rollout.text) / max(len(rollout.text), 1)
