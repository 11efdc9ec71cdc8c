"""What a watcher of a run knows so far: steps, phases, times, parity. In: the events of an `Observer`. Out: numbers."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from lockstep.config import RunConfig
from lockstep.dashboard.units import count, duration, exact

STEP_PHASES = ("rollout", "reward", "parity", "train", "publish")
HISTORY = 400


class Progress:
    """Keeps the last values; time is read from `clock` (seconds), so that tests need not wait."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._step_seconds: deque[float] = deque(maxlen=8)
        self.title = ""
        self.directory = ""
        self.total = 0
        self.gated = True
        self.step = 0
        self.refused = False
        self.phase: tuple[str, int, int] = ("", 0, 0)
        self.metrics: Mapping[str, float | None] = {}
        self.rewards: deque[float | None] = deque(maxlen=HISTORY)
        self.first_reward: float | None = None
        self.parity_tokens = 0
        self.accuracies: list[tuple[int, float]] = []

    def start(self, config: RunConfig, manifest: Mapping[str, Any]) -> None:
        """Note what runs and where."""
        self._began = self._clock()
        self.title = f"{config.model} on {config.task.name}"
        self.directory = str(manifest.get("directory") or config.output_dir)
        self.total = config.max_steps
        self.gated = config.parity.gate

    def advance(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Note the metrics of a step, or of an evaluation after it."""
        accuracy = metrics.get("eval/accuracy")
        if accuracy is not None:
            self.accuracies.append((step, accuracy))
        if "reward" not in metrics:
            return
        self.step, self.metrics, self.phase = step, metrics, ("", 0, 0)
        self.rewards.append(metrics["reward"])
        if self.first_reward is None:
            self.first_reward = metrics["reward"]
        tokens = metrics.get("parity/num_tokens") or 0
        self.parity_tokens += int(tokens) if math.isfinite(tokens) else 0
        self._step_seconds.append(metrics.get("time/step") or 0.0)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._began

    @property
    def left(self) -> float | None:
        """Seconds to the last step, from the mean of the latest steps; None before the first."""
        if not self._step_seconds:
            return None
        return sum(self._step_seconds) / len(self._step_seconds) * (self.total - self.step)

    @property
    def parity_exact(self) -> bool:
        """Whether the latest step compared tokens and all of them agreed."""
        tokens, worst = self.metrics.get("parity/num_tokens"), self.metrics.get("parity/max")
        return bool(tokens) and worst == 0 and not self.metrics.get("parity/frac_differing")


MARKS = {"finished": "done", "refused": "refused", "interrupted": "stopped", "failed": "failed"}
"""One word for each way a run may end."""


def verdict(summary: Mapping[str, Any]) -> str:
    """What a run came to, in one sentence; why it was stopped is said by the error that stopped it."""
    parts = []
    before, after = summary.get("accuracy_before"), summary.get("accuracy_after")
    if after is not None:
        parts.append(
            f"held-out accuracy {before:.2f} -> {after:.2f}" if before is not None else f"accuracy {after:.2f}"
        )
    if summary.get("parity_tokens") and summary["outcome"] != "refused":
        parts.append(f"parity {exact(summary.get('parity_max'))} over {count(summary['parity_tokens'])} tokens")
    if summary.get("steps") is not None:
        taken = f" in {duration(summary['seconds'])}" if summary.get("seconds") is not None else ""
        parts.append(f"{count(summary['steps'])} {'step' if summary['steps'] == 1 else 'steps'}{taken}")
    if summary["outcome"] == "refused":
        parts.insert(0, f"step {(summary.get('steps') or 0) + 1} was refused")
    return ", ".join(parts) or str(summary["outcome"])


def where(summary: Mapping[str, Any]) -> str:
    """Where the results of a run lie: its report, else its directory, else nothing."""
    return str(summary.get("report") or summary.get("directory") or "")
