"""What a line of `metrics.jsonl` says, apart from the trainer's and the gate's own numbers.

In: rewards, rollouts, seconds. Out: numbers under the names of docs/run-directory.md.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from lockstep.core import Rollout
from lockstep.pipeline.buffer import Buffer
from lockstep.rewards import Advantages, Grade


class Stopwatch:
    """Seconds per stage of one step; `time/step` is all of it."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside to `time/{name}`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            key = f"time/{name}"
            self.seconds[key] = self.seconds.get(key, 0.0) + time.perf_counter() - started

    def metrics(self, tokens: int, *, ahead: bool) -> dict[str, float]:
        """Seconds, and tokens per second of the step and of its stages; none for sampling that was done `ahead`."""
        whole = time.perf_counter() - self._started
        stages = ("train",) if ahead else ("rollout", "train")
        throughput = {f"throughput/{name}_tokens_per_s": tokens / self.seconds[f"time/{name}"] for name in stages}
        return {**self.seconds, "time/step": whole, "throughput/tokens_per_s": tokens / whole, **throughput}


def reward_metrics(grades: Sequence[Grade], gains: Advantages) -> dict[str, float | None]:
    """Means of the rewards and of their parts; an undecided reward (None) is counted, and in no mean."""
    known = [grade.reward.value for grade in grades if grade.reward.value is not None]
    parts: dict[str, list[float]] = {}
    for grade in grades:
        for name, value in grade.reward.parts.items():
            if value is not None:
                parts.setdefault(name, []).append(value)
    return {
        "reward": float(np.mean(known)) if known else None,
        "reward_std": gains.reward_std,
        "frac_reward_zero_std": gains.frac_reward_zero_std,
        "frac_reward_undecided": float(gains.undecided.mean()),
        **{f"rewards/{name}/mean": float(np.mean(values)) for name, values in parts.items()},
    }


def buffer_metrics(buffer: Buffer) -> dict[str, float]:
    """What was sampled for nothing since the last step, and what is in hand for the next ones, in groups."""
    dropped = buffer.take_dropped()
    return {
        "groups/dropped": dropped.groups,
        "groups/dropped_tokens": dropped.tokens,
        "groups/outstanding": len(buffer.outstanding),
        "groups/whole": buffer.num_whole,
    }


def completion_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Lengths in tokens, and the fraction cut off at the limit."""
    return {
        "completions/mean_length": float(np.mean([len(r.token_ids) for r in rollouts])),
        "completions/clipped_ratio": float(np.mean([r.finish_reason == "length" for r in rollouts])),
    }


def merge_steps(parts: Sequence[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    """Metrics of the optimizer steps of one batch, weighted by their tokens; seconds and counts are added."""
    tokens = sum(count for count, _ in parts)
    merged: dict[str, float] = {}
    for count, metrics in parts:
        for name, value in metrics.items():
            added = name.startswith("time/") or name == "groups_without_signal"
            share = value if added else value * count / tokens
            merged[name] = merged.get(name, 0.0) + share
    return merged


def peak_memory_gb() -> float:
    """Largest resident size of this process so far, in GB (1e9 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9
