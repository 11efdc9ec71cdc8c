"""Random choices for scenarios, all from one counter-based stream.

In: a seed and the name of a scenario. Out: numbers, choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from lockstep.numerics import request_key

T = TypeVar("T")


class Draws:
    """A stream of choices; equal (seed, purpose) give equal streams."""

    __slots__ = ("_stream",)

    def __init__(self, seed: int, purpose: str) -> None:
        self._stream = np.random.Generator(np.random.Philox(key=request_key(seed, purpose, 0)))

    def integer(self, low: int, high: int) -> int:
        """Between `low` and `high`, both included."""
        return int(self._stream.integers(low, high, endpoint=True))

    def integers(self, count: int, high: int) -> list[int]:
        """`count` numbers from 0 to `high` - 1."""
        return self._stream.integers(high, size=count).tolist()

    def number(self, low: float, high: float, digits: int = 2) -> float:
        """A rounded number between two others."""
        return round(float(self._stream.uniform(low, high)), digits)

    def chance(self, probability: float) -> bool:
        """True this often."""
        return bool(self._stream.random() < probability)

    def choice(self, options: Sequence[T]) -> T:
        """One of them."""
        return options[self.integer(0, len(options) - 1)]

    def distinct(self, count: int, high: int) -> list[int]:
        """`count` different numbers from 0 to `high` - 1, ascending."""
        return sorted(self._stream.permutation(high)[:count].tolist())
