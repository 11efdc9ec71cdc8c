"""Figures as inline SVG that follow the page: its fonts, its colours, light and dark.

In: series of numbers. Out: SVG text without ids, scripts or references outside itself. One user unit is one CSS pixel.
Drawing uses matplotlib's objects (no pyplot, no current figure); colours are markers that become CSS variables.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

INK = {
    name: f"#{number:06x}"
    for number, name in enumerate(
        ("text", "faint", "line", "blue", "green", "red", "amber", "violet", "teal", "grey", "paper"), 0x010203
    )
}
"""Marker colours: they stand for the page's CSS variables of the same names."""

FULL, HALF, THIRD = (938, 250), (438, 160), (275, 92)
Size = tuple[int, int]
Bounds = tuple[float | None, float | None]
MOST_POINTS = 400
MOST_BARS = 80
_STYLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "lockstep", "path.simplify": False}


@dataclass(frozen=True, slots=True)
class Series:
    """A line: `steps` int [N], `values` float [N] (NaN: not measured). `worst`: thin long runs by maximum, not mean."""

    steps: np.ndarray
    values: np.ndarray
    color: str = "blue"
    worst: bool = False

    def thinned(self) -> Series:
        """At most `MOST_POINTS` points, each of as many steps as the next."""
        return Series(
            thin(self.steps, MOST_POINTS, worst=True),
            thin(self.values, MOST_POINTS, worst=self.worst), self.color, self.worst,
        )  # fmt: skip


def thin(values: np.ndarray, most: int, *, worst: bool = False) -> np.ndarray:
    """`values` float [N] in at most `most` equal runs, each as its mean or (`worst`) its maximum; NaN is skipped."""
    length = stride(len(values), most)
    if length == 1:
        return values
    padded = np.full(math.ceil(len(values) / length) * length, np.nan)
    padded[: len(values)] = values
    runs = padded.reshape(-1, length)
    known = ~np.isnan(runs)
    filled = np.where(known, runs, -np.inf if worst else 0.0)
    found = filled.max(1) if worst else filled.sum(1) / np.maximum(known.sum(1), 1)
    return np.where(known.any(1), found, np.nan)


def lines(series: Sequence[Series], *, bounds: Bounds = (None, None), size: Size = HALF) -> str:
    """Lines over steps, `bounds` where the axis has natural ends. All zeros are drawn as what they are."""
    figure, axes = _axes(size)
    shown = [one.thinned() for one in series]
    for one in shown:
        _line(axes, one)
    _limits(axes, np.concatenate([one.values for one in shown]), bounds)
    return _svg(figure)


def reward(series: Series, deviation: np.ndarray, evaluations: Sequence[tuple[int, float]]) -> str:
    """Reward by step, a band of one standard deviation, the moving mean, and held-out accuracies as rings."""
    figure, axes = _axes(FULL)
    steps = thin(series.steps, MOST_POINTS, worst=True)
    values, spread = thin(series.values, MOST_POINTS), thin(deviation, MOST_POINTS)
    axes.fill_between(steps, values - spread, values + spread, color=INK["blue"], alpha=0.12, linewidth=0)
    axes.plot(steps, values, color=INK["blue"], linewidth=1, alpha=0.55)
    axes.plot(steps, thin(moving_mean(series.values), MOST_POINTS), color=INK["blue"], linewidth=2.2)
    if evaluations:
        at, accuracy = zip(*evaluations, strict=True)
        axes.plot(at, accuracy, "o", ms=7, mfc=INK["paper"], mec=INK["amber"], mew=2, clip_on=False, zorder=5)
    everything = np.concatenate([values - spread, values + spread, [accuracy for _, accuracy in evaluations]])
    known = everything[np.isfinite(everything)]
    inside = bool(known.size) and known.min() >= -0.6 and known.max() <= 1.6
    _limits(axes, everything, (0.0, 1.0) if inside else (None, None))
    return _svg(figure)


def moving_mean(values: np.ndarray) -> np.ndarray:
    """The mean of each value and those before it, `window(N)` in all; NaN is skipped."""
    size = window(len(values))
    found = np.full(len(values), np.nan)
    for end in range(1, len(values) + 1):
        known = values[max(0, end - size) : end]
        known = known[np.isfinite(known)]
        if known.size:
            found[end - 1] = known.mean()
    return found


def window(steps: int) -> int:
    """Steps in the moving mean of a run of `steps`: a tenth, from 3 to 50."""
    return min(max(3, steps // 10), 50)


def stride(steps: int, most: int = MOST_POINTS) -> int:
    """Steps that one point of a figure stands for."""
    return max(1, math.ceil(steps / most))


def parity(series: Series) -> str:
    """The largest difference of each step: a line at zero if it is zero, else a red stem for a step that differs."""
    figure, axes = _axes(THIRD)
    shown = series.thinned()
    differs = np.nan_to_num(shown.values, nan=np.inf) != 0
    if not differs.any():
        middle = {"transform": axes.transAxes, "ha": "center", "va": "center"}
        axes.text(0.5, 0.5, "0.0 at every step", fontsize=12, color=INK["green"], **middle)
    _line(axes, shown)
    top = np.where(np.isfinite(shown.values), shown.values, np.nan)
    axes.vlines(shown.steps[differs], 0, top[differs], color=INK["red"], linewidth=2)
    axes.plot(shown.steps[differs], top[differs], "o", ms=5, color=INK["red"], clip_on=False)
    _limits(axes, shown.values, (0.0, None))
    return _svg(figure)


def stacked(steps: np.ndarray, parts: Mapping[str, np.ndarray], colors: Mapping[str, str]) -> str:
    """Seconds of each part of a step on top of one another, one bar a step or a run of steps."""
    figure, axes = _axes(HALF)
    at = thin(steps, MOST_BARS, worst=True)
    width = float(np.diff(at).min()) if len(at) > 1 else 1.0
    base = np.zeros(len(at))
    for name, values in parts.items():
        height = thin(np.where(np.isfinite(values), values, 0.0), MOST_BARS)
        axes.bar(at, height, width=0.8 * width, bottom=base, color=INK[colors[name]], linewidth=0)
        base = base + height
    _limits(axes, base, (0.0, None))
    if len(at) == 1:
        axes.set_xlim(at[0] - 3, at[0] + 3)
    return _svg(figure)


def _axes(size: tuple[int, int]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(size[0] / 72, size[1] / 72))
    left, right, bottom, top = 40, 8, 22, 8
    box = (left / size[0], bottom / size[1], 1 - (left + right) / size[0], 1 - (bottom + top) / size[1])
    axes = figure.add_axes(box)
    axes.patch.set_visible(False)
    figure.patch.set_visible(False)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(INK["line"])
    axes.tick_params(length=0, pad=6, labelcolor=INK["faint"], labelsize=11)
    axes.grid(axis="y", color=INK["line"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(
        MaxNLocator(nbins=min(size[0] // 64, 9), steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
    )
    axes.yaxis.set_major_locator(MaxNLocator(nbins=size[1] // 40, steps=[1, 2, 2.5, 5, 10], min_n_ticks=2))
    axes.xaxis.set_major_formatter(FuncFormatter(_tick))
    axes.yaxis.set_major_formatter(FuncFormatter(_tick))
    return figure, axes


def _tick(value: float, _: int | None = None) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.0e}"


def _line(axes: Axes, series: Series) -> None:
    color = INK[series.color]
    axes.plot(series.steps, series.values, color=color, linewidth=1.8, clip_on=False, zorder=3)
    known = np.flatnonzero(np.isfinite(series.values))
    if known.size:
        axes.plot(series.steps[known[-1]], series.values[known[-1]], "o", ms=4.5, color=color, clip_on=False, zorder=4)


def _limits(axes: Axes, values: np.ndarray, bounds: Bounds) -> None:
    """Room around the values, closed at natural ends; a flat zero sits on the axis with nothing else to read."""
    axes.margins(x=0.02)
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    if low == high == 0 and bounds[1] is None:
        axes.set_ylim(0, 1)
        axes.set_yticks([0])
        return
    reach = (high - low) or abs(high) or 1.0
    ends = (low - 0.05 * reach if bounds[0] is None else bounds[0], high if bounds[1] is None else bounds[1])
    ticks = axes.yaxis.get_major_locator().tick_values(*ends)
    axes.set_ylim(ends[0] if bounds[0] is not None else ticks[0], ends[1] if bounds[1] is not None else ticks[-1])


def _svg(figure: Figure) -> str:
    """Render, then cut what would leak into the page: prologue, metadata, ids, the global style, fixed sizes."""
    target = io.StringIO()
    with mpl.rc_context(_STYLE):  # the SVG writer reads these settings and nothing else
        FigureCanvasSVG(figure).print_svg(target, metadata={"Date": None, "Creator": None})
    text = target.getvalue()
    text = text[text.index("<svg") :]
    for pattern in (r"<metadata>.*?</metadata>", r"<style.*?</style>", r"<!--.*?-->"):
        text = re.sub(pattern, "", text, flags=re.DOTALL)
    used = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    text = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', text, count=1)
    for name, marker in INK.items():
        text = text.replace(marker, f"var(--{name})")
    return re.sub(r"\n\s*", "\n", text)
