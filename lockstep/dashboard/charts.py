"""Which figures a report shows, and what each metric means. In: `Facts`. Out: titled SVG figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lockstep.dashboard import figures
from lockstep.dashboard.facts import Facts
from lockstep.dashboard.figures import Series
from lockstep.dashboard.units import duration, exact, fixed

STAGES = {
    "rollout": "blue", "train": "violet", "reward": "amber", "parity": "green", "publish": "teal", "other": "grey",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure: its SVG, title, latest value, what is drawn, and a legend of (colour, text)."""

    svg: str
    title: str
    value: str
    note: str
    legend: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class Curve:
    """One metric to draw: its key, title, meaning, decimals (None: three digits that count), and its axis' ends."""

    key: str
    title: str
    note: str
    digits: int | None = 3
    bounds: tuple[float | None, float | None] = (None, None)


LOCKSTEP = (
    Curve("kl_new_old", "KL, trainer to sampler", "exp(lr) - lr - 1, mean over tokens", 4, (0.0, None)),
    Curve("clamp_log_ratio_new_old_indicator", "Clip rate", "fraction of tokens that are clipped", 4, (0.0, None)),
    Curve("ess", "Effective sample size", "over tokens, as a fraction", 3, (0.0, 1.05)),
    Curve("mean_abs_log_ratio_new_old", "Mean |log ratio|", "of trainer to sampler, per token", 4, (0.0, None)),
    Curve("corrections/frac_removed", "Removed", "fraction of tokens that the correction dropped", 4, (0.0, None)),
    Curve("corrections/ess_after", "ESS after correction", "of the weights it left, as a fraction", 3, (0.0, 1.05)),
    Curve("lag", "Lag", "steps that a token is behind, mean", 2, (0.0, None)),
    Curve("lag_max", "Largest lag", "steps that the oldest token is behind", 0, (0.0, None)),
    Curve("update/kl", "Update", "KL of the trainer now to itself at sampling; not mismatch", 4, (0.0, None)),
    Curve("groups/dropped", "Dropped groups", "too old, or given up", 0, (0.0, None)),
)
LEARNING = (
    Curve("entropy", "Entropy", "of the sampling distribution, nats per token", 3, (0.0, None)),
    Curve("grad_norm", "Gradient norm", "before clipping", 3, (0.0, None)),
    Curve("loss", "Loss", "of the objective, weighted over the batch", 4),
    Curve("kl", "KL to the initial weights", "k3 estimate per token", 4, (0.0, None)),
    Curve("completions/mean_length", "Completion length", "mean tokens in a completion", 1, (0.0, None)),
    Curve("completions/clipped_ratio", "Cut off", "fraction of completions that hit the token limit", 3, (0.0, None)),
    Curve("frac_reward_zero_std", "Groups without signal", "fraction whose rewards are all equal", 3, (0.0, 1.05)),
    Curve("learning_rate", "Learning rate", "of the optimizer", None, (0.0, None)),
)


def charts(facts: Facts) -> dict[str, list[Chart]]:
    """The figures that the run has numbers for, by section; the first is drawn wide."""
    if not facts.lines:
        return {}
    curves = {
        name: [_curve(facts, curve, size) for curve in known if _worth(facts, curve)]
        for name, known, size in (("In lockstep", LOCKSTEP, figures.THIRD), ("Learning", LEARNING, figures.HALF))
    }
    return {
        "Reward": [_reward(facts)],
        "In lockstep": [_parity(facts), *curves["In lockstep"]],
        "Learning": curves["Learning"],
        "Speed": [*_speed(facts), *_time(facts)],
    }


def _worth(facts: Facts, curve: Curve) -> bool:
    """Whether the run measured it; without loss.beta there is no reference to be away from."""
    if curve.key == "kl" and not (facts.config.get("loss") or {}).get("beta"):
        return False
    values = facts.series(curve.key)
    if curve.key in ("lag_max", "update/kl", "groups/dropped"):  # a synchronous run has them, and nothing to show
        return bool(np.nan_to_num(values).any())
    return bool(np.isfinite(values).any())


def _reward(facts: Facts) -> Chart:
    values = facts.series("reward")
    size, run = figures.window(len(values)), figures.stride(len(values))
    thinned = f"; one point for {run} steps here and below (parity: their largest)" if run > 1 else ""
    legend = [("blue", f"reward, and its mean over {size} steps"), ("band", "one standard deviation of the rewards")]
    if facts.accuracies:
        legend.append(("ring", "held-out accuracy, greedy"))
    points = [(accuracy.step, accuracy.value) for accuracy in facts.accuracies]
    svg = figures.reward(Series(facts.steps, values), np.nan_to_num(facts.series("reward_std")), points)
    return Chart(svg, "Reward", fixed(facts.latest("reward")), f"mean over the step's rollouts{thinned}", legend)


def _parity(facts: Facts) -> Chart:
    values = facts.series("parity/max")
    color = "green" if facts.parity.exact else "red"
    svg = figures.parity(Series(facts.steps, values, color, worst=True))
    return Chart(
        svg,
        "Parity",
        exact(facts.latest("parity/max")),
        "largest |trainer - sampler| logprob",
    )


def _curve(facts: Facts, curve: Curve, size: figures.Size) -> Chart:
    values = facts.series(curve.key)
    svg = figures.lines([Series(facts.steps, values)], bounds=curve.bounds, size=size)
    return Chart(svg, curve.title, _said(facts.latest(curve.key), curve.digits), curve.note)


def _said(value: float | None, digits: int | None) -> str:
    return exact(value) if digits is None else fixed(value, digits)


def _speed(facts: Facts) -> list[Chart]:
    keys = {"rollout": "throughput/rollout_tokens_per_s", "train": "throughput/train_tokens_per_s"}
    found = {name: facts.series(key) for name, key in keys.items() if np.isfinite(facts.series(key)).any()}
    if not found:
        return []
    series = [Series(facts.steps, values, STAGES[name]) for name, values in found.items()]
    legend = [(STAGES[name], f"{name} {fixed(facts.latest(keys[name]), 0)}") for name, values in found.items()]
    return [Chart(figures.lines(series, bounds=(0.0, None)), "Tokens per second", "", "within each stage", legend)]


def _time(facts: Facts) -> list[Chart]:
    whole = facts.series("time/step")
    parts = {name: np.nan_to_num(facts.series(f"time/{name}")) for name in STAGES if name != "other"}
    parts = {name: values for name, values in parts.items() if values.any()}
    if not parts or not np.isfinite(whole).any():
        return []
    parts["other"] = np.maximum(np.nan_to_num(whole) - sum(parts.values()), 0.0)
    total = max(sum(float(values.sum()) for values in parts.values()), 1e-12)
    legend = [(STAGES[name], f"{name} {_share(float(values.sum()) / total)}") for name, values in parts.items()]
    svg = figures.stacked(facts.steps, parts, STAGES)
    return [Chart(svg, "Time of a step", duration(facts.latest("time/step")), "seconds in each stage", legend)]


def _share(share: float) -> str:
    return "< 0.1 %" if 0 < share < 0.001 else f"{share:.1%}".replace("%", " %")
