"""Figures of the re-enactment and of the study, as SVG that needs nothing else.

In: numbers by arm. Out: files.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from lockstep.trace.durable import replace_file

COLOURS = {
    "reference": "#b9c7dd", "naive": "#c0392b", "mended": "#1f5fbf",
    "broken": "#c0392b", "broken+correction": "#e08a2b", "mended+correction": "#2a9d76",
}  # fmt: skip
FAINT = "#8a8f98"

PANELS = {
    "clamp_log_ratio_new_old_indicator": ("Clip rate", "fraction of tokens"),
    "kl_new_old": ("KL, trainer to sampler", "k3, nats per token"),
    "entropy": ("Entropy", "nats per token"),
    "reward": ("Reward", "mean of the batch"),
    "lag": ("Lag", "steps, mean"),
    "parity/mean": ("Mismatch at the same weights", "mean |log ratio|, nats"),
}
"""Metric: title, unit."""


def arms(file: Path, lines: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Six panels over the steps, a line an arm. The reference is wide and pale: the mended arm lies upon it."""

    def draw(page: Figure) -> None:
        axes = page.subplots(2, 3).flat
        for axis, (key, (title, unit)) in zip(axes, PANELS.items(), strict=True):
            for name, own in lines.items():
                wide = name == "reference"
                axis.plot(
                    [line["step"] for line in own],
                    [np.nan if line[key] is None else line[key] for line in own],
                    color=COLOURS[name], lw=5 if wide else 1.2, label=name, zorder=1 if wide else 2,
                )  # fmt: skip
            _dress(axis, title, "step", unit)
        page.legend(*axis.get_legend_handles_labels(), loc="outside upper right", ncols=3, frameon=False)

    _write(file, (10.5, 5.6), draw)


def study(file: Path, found: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> None:
    """Left: held-out accuracy over the steps, the mean of the seeds. Right: the contrasts with their intervals."""

    def draw(page: Figure) -> None:
        left, right = page.subplots(1, 2, width_ratios=(1, 1.1))
        for name in found["arms"]:
            curves = [run["curve"] for run in runs if run["arm"] == name and run["seed"] in found["seeds"]]
            steps = [step for step, *_ in curves[0]]
            values = np.array([[value for _, value, _ in curve] for curve in curves])
            spread = values.std(0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.zeros(len(steps))
            mean = values.mean(0)
            left.fill_between(steps, mean - spread, mean + spread, color=COLOURS[name], alpha=0.15, lw=0)
            left.plot(steps, mean, color=COLOURS[name], marker="o", ms=3, lw=1.4, label=name)
        _dress(left, f"Held-out accuracy, {len(found['seeds'])} seeds (mean, standard error)", "step", "")
        left.legend(frameon=False, fontsize=8)
        shown = [one for one in found["contrasts"] if one["outcome"] == "accuracy"]
        for place, one in enumerate(reversed(shown)):
            right.plot(one["each"], [place] * len(one["each"]), "o", color=FAINT, ms=3, alpha=0.5)
            right.plot([one["low"], one["high"]], [place] * 2, color=COLOURS["mended"], lw=2)
            right.plot(one["mean"], place, "D", color=COLOURS["mended"], ms=5)
        right.axvline(0, color=FAINT, lw=0.8)
        names = [f"{one['of']}\n{one['what']}\np (Holm) = {one['p_holm']:.3g}" for one in reversed(shown)]
        right.set_yticks(range(len(shown)), names, fontsize=7)
        right.set_ylim(-0.6, len(shown) - 0.4)
        _dress(right, "Difference of accuracy at the end, by seed", "", "")

    _write(file, (10.5, 3.8), draw)


def _dress(axis: Axes, title: str, x: str, y: str) -> None:
    axis.set(title=title, xlabel=x, ylabel=y)
    axis.grid(color=FAINT, alpha=0.3, lw=0.5)
    axis.spines[["top", "right"]].set_visible(False)


def _write(file: Path, size: tuple[float, float], draw: Any) -> None:
    """The file appears whole; equal numbers give equal bytes."""
    with mpl.rc_context({"svg.hashsalt": "lockstep", "font.size": 9, "axes.titlesize": 9}):
        page = Figure(size, layout="constrained")
        FigureCanvasSVG(page)
        draw(page)
        out = io.StringIO()
        page.savefig(out, format="svg", metadata={"Date": None})
    replace_file(file, out.getvalue().encode())
