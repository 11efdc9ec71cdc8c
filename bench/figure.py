"""Small line figures on logarithmic axes, side by side in one SVG.

In: series of points with their spread. Out: a file.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Page
from matplotlib.ticker import NullLocator, ScalarFormatter

from bench.contest import Spread
from lockstep.trace.durable import replace_file

INK, FAINT = "#1f5fbf", "#8a8f98"


@dataclass(frozen=True, slots=True)
class Point:
    """The median at `x`, and how far the rounds lie apart."""

    x: int
    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Series:
    """One figure: its title, what its axes are, its points."""

    title: str
    x: str
    y: str
    points: tuple[Point, ...]

    @classmethod
    def of(cls, title: str, x: str, y: str, values: Mapping[int, Sequence[float]]) -> Series:
        """Of the values of all rounds at each x."""
        spreads = {at: Spread.of(found) for at, found in values.items()}
        points = tuple(Point(at, spread.median, spread.low, spread.high) for at, spread in spreads.items())
        return cls(title, x, y, points)


def write(file: Path, series: Sequence[Series]) -> None:
    """Draw every series that has points; the file appears whole."""
    shown = [one for one in series if one.points]
    with mpl.rc_context({"svg.hashsalt": "lockstep", "font.size": 9, "axes.titlesize": 9}):
        page = Page((3.6 * len(shown), 2.8), layout="constrained")
        FigureCanvasSVG(page)
        for axes, one in zip(page.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            xs = [point.x for point in one.points]
            axes.fill_between(xs, [p.low for p in one.points], [p.high for p in one.points], color=INK, alpha=0.2, lw=0)
            axes.plot(xs, [point.median for point in one.points], color=INK, marker="o", ms=3.5, lw=1.5)
            axes.set(xscale="log", yscale="log", xlabel=one.x, ylabel=one.y, title=one.title)
            axes.set_xticks(xs, [f"{x}" for x in xs], rotation=45 if len(xs) > 6 else 0)
            axes.xaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(ScalarFormatter())
            axes.grid(color=FAINT, alpha=0.3, lw=0.5)
            axes.spines[["top", "right"]].set_visible(False)
        out = io.StringIO()
        page.savefig(out, format="svg", metadata={"Date": None})
    replace_file(file, out.getvalue().encode())
