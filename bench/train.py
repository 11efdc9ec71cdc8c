"""`make bench-train`: one GRPO step of the addition recipe, 8 prompts x 8 samples x at most 32 tokens.

In: options. Out: a `Result`: seconds a step, ours against TRL. Ours is the whole loop with parity gate and trace.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench import recipe, result
from bench.contest import Spread, Standing, hold
from bench.options import OURS, Options, announce
from bench.referee import unfair
from bench.result import Figure, Line, Result

ROW = "train"
BARS = {recipe.TRL: 10.0, recipe.TRL_MASTERS: 10.0}
MOST_LENGTH, MOST_REWARD = 0.25, 0.2
"""By how much mean length (relatively) and mean reward may differ between two that draw from one model."""


def run(options: Options) -> Result:
    """Hold the contest. Raises `WorkerFailed` and `Unfair`."""
    config = recipe.configuration(options, options.rounds + 1, seed=0)
    entrants = [recipe.trainer(name, config, options) for name in options.chosen(recipe.NAMES)]
    standings = hold(entrants, lambda _: {"do": "step"}, options.rounds, options.logs(ROW), announce)
    contestants = {name: summary(standing) for name, standing in standings.items()}
    if not options.trial:
        require_alike(contestants)
    size = f"{config.num_prompts_per_step} x {config.num_generations} x <= {config.sampling.max_tokens} tokens"
    return Result(
        ROW,
        {"config": settings(config.model_dump(mode="json")), "rounds": options.rounds, "threads": options.threads},
        contestants,
        result.comparisons(Line(f"GRPO step, {size}", "s"), standings, OURS, BARS),
        {name: found["sanity"] for name, found in contestants.items()},
        figures=gate(standings[OURS]),
    )


def gate(ours: Standing) -> tuple[Figure, ...]:
    """What the parity gate takes of a step."""
    shares = [100.0 * float(answer["gate_seconds"]) / float(answer["seconds"]) for answer in ours.answers[1:]]
    return (Figure.of("parity gate, all tokens, of a step", "%", shares, 0.5),)


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without the path of the reward function, which is a place on one machine."""
    return {**config, "task": {**config["task"], "reward": "bench/peers/reward.py:exact_integer"}}


def summary(standing: Standing) -> dict[str, Any]:
    """What is kept of a trainer: its record without configuration and problems, and what its steps were like."""
    found = result.record(standing)
    found["settings"] = {k: v for k, v in found["settings"].items() if k not in ("config", "problems")}
    counted = standing.answers[1:]
    sanity = {
        "mean_tokens": Spread.of([float(answer["mean_tokens"]) for answer in counted]).median,
        "mean_reward": sum(float(answer["reward"]) for answer in counted) / len(counted),
    }
    if "parity" in counted[0]:
        sanity["parity_max"] = max(float(answer["parity"]) for answer in counted)
    return {**found, "sanity": sanity}


def require_alike(contestants: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise `Unfair` if somebody draws other completions than ours: shorter ones are less work."""
    ours = contestants[OURS]["sanity"]
    for name, found in contestants.items():
        theirs = found["sanity"]
        length = abs(theirs["mean_tokens"] / ours["mean_tokens"] - 1.0)
        if length > MOST_LENGTH:
            got, expected = f"{theirs['mean_tokens']:.1f} tokens", f"{ours['mean_tokens']:.1f} within {MOST_LENGTH:.0%}"
            raise unfair(name, "completions are as long as ours", got, expected)
        if abs(theirs["mean_reward"] - ours["mean_reward"]) > MOST_REWARD:
            got, expected = f"{theirs['mean_reward']:.2f}", f"{ours['mean_reward']:.2f} within {MOST_REWARD}"
            raise unfair(name, "they earn what ours earn", got, expected)
