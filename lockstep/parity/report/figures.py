"""The figures of an audit: how large the differences are, where in the completion, and what they are made of.

In: differences, a breakdown. Out: shapes in pixels, which the page draws as SVG.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

WIDTH, HEIGHT = 680, 180
"""Of a figure, in CSS pixels, without its labels."""

DECADES = range(-8, 2)
"""Powers of ten, in nats, at which the bars of the histogram begin; what is smaller or 0 has a bar of its own."""

POSITIONS = 48
"""Points of the line over positions at most."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A box: left, top, width, height in pixels; what stands below and above it."""

    x: float
    y: float
    width: float
    height: float
    label: str
    value: str


@dataclass(frozen=True, slots=True)
class Line:
    """Points of a polyline in pixels; the largest value, in nats, and the last position."""

    points: str
    largest: float
    last: int


def histogram(differences: Sequence[np.ndarray]) -> list[Bar]:
    """Tokens by the power of ten of |trainer - sampler|; the first bar is of those that agree to 1e-8."""
    sizes = np.abs(np.concatenate(differences)) if differences else np.empty(0)
    if not len(sizes):
        return []
    edges = [10.0**power for power in DECADES]
    counts = [int((sizes < edges[0]).sum())]
    counts += [int(((sizes >= a) & (sizes < b)).sum()) for a, b in zip(edges, [*edges[1:], np.inf], strict=True)]
    labels = ["agree", *(f"1e{power}" for power in DECADES)]
    step, most = WIDTH / len(counts), max(counts)
    return [
        Bar(i * step + 3, HEIGHT * (1 - count / most), step - 6, HEIGHT * count / most, label, str(count))
        for i, (count, label) in enumerate(zip(counts, labels, strict=True))
    ]


def positions(differences: Sequence[np.ndarray]) -> Line | None:
    """Mean |trainer - sampler| against the place of the token in its completion; None if there is nothing to draw."""
    longest = max((len(d) for d in differences), default=0)
    if longest < 2:
        return None
    width = -(-longest // POSITIONS)
    means = []
    for start in range(0, longest, width):
        there = [np.abs(d[start : start + width]) for d in differences if len(d) > start]
        means.append(float(np.concatenate(there).mean()))
    largest = max(means)
    if not largest > 0:
        return None
    across = WIDTH / max(len(means) - 1, 1)
    points = " ".join(f"{i * across:.1f},{HEIGHT * (1 - mean / largest):.1f}" for i, mean in enumerate(means))
    return Line(points, largest, longest)


def parts(rows: Sequence[dict[str, Any]]) -> list[Bar]:
    """A bar a part of a breakdown, as long as its mean size."""
    largest = max((row["size"] for row in rows), default=0.0)
    scale = (WIDTH - 160) / largest if largest else 0.0
    return [
        Bar(0, i * 44 + 20, scale * row["size"], 14, row["part"], f"{row['size']:.3g}") for i, row in enumerate(rows)
    ]
