"""Where a step's time goes: by stage, as the loop measures it, and by operator, as torch's profiler sees it.

In: the events of a run. Out: `profile.json` in its directory, and a table. Steps 2 to 4 are looked at: the first one
measures shapes and fills caches. Looking costs time itself, so the steps that are looked at are slower than others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from lockstep.config import RunConfig
from lockstep.trace.durable import replace_file

FIRST, LAST = 2, 4
MOST_OPERATORS = 15
STAGES = ("rollout", "reward", "parity", "train", "publish", "trace")
WITHIN = {"forward": "train", "backward": "train", "optimizer": "train"}
"""Parts that the trainer measures within a stage."""


@dataclass(frozen=True, slots=True)
class Share:
    """Seconds of a step, on average, and what fraction of it that is; operators: how many calls a step."""

    name: str
    seconds: float
    fraction: float
    calls: float = 0.0


class ProfileObserver:
    """Looks at a few steps of a run."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._directory: Path | None = None
        self._profiler: Any = None
        self._steps = 0  # of this process
        self._seen: list[Mapping[str, float | None]] = []
        self.stages: tuple[Share, ...] = ()
        self.operators: tuple[Share, ...] = ()

    def on_start(self, config: RunConfig, manifest: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Where to write."""
        self._directory = Path(manifest["directory"])

    def on_phase(self, name: str, done: int, total: int) -> None:
        """Nothing to see."""

    def on_step(self, step: int, metrics: Mapping[str, float | None]) -> None:  # noqa: ARG002
        """Start after step `FIRST` - 1 of this process, stop after `LAST`."""
        if "time/step" not in metrics:
            return
        if self._profiler is not None:
            self._seen.append(metrics)
        self._steps += 1
        if self._steps == FIRST - 1:
            self._start()
        elif self._steps == LAST:
            self._stop()

    def on_end(self, summary: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Say what was seen, even if the run ended before the last step that was to be looked at."""
        if self._profiler is not None:
            self._stop()
        if not self._seen:
            self._console.print(f"profile: the run ended before step {FIRST} was over; there is nothing to show")
            return
        self._console.print(_table(f"steps {FIRST} to {FIRST + len(self._seen) - 1}, by stage", self.stages))
        self._console.print(_table("by operator", self.operators))
        assert self._directory is not None, "a run starts before it ends"
        file = self._directory / "profile.json"
        tree = {name: [asdict(share) for share in getattr(self, name)] for name in ("stages", "operators")}
        replace_file(file, orjson.dumps({"steps": len(self._seen), **tree}, option=orjson.OPT_INDENT_2))
        self._console.print(f"profile: {file}")

    def _start(self) -> None:
        from torch.profiler import ProfilerActivity, profile

        self._profiler = profile(activities=[ProfilerActivity.CPU], acc_events=True)
        self._profiler.start()

    def _stop(self) -> None:
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        if self._seen:
            whole = _mean(self._seen, "time/step")
            self.stages = stages(self._seen)
            self.operators = operators(profiler.key_averages(), len(self._seen), whole)


def stages(steps: Sequence[Mapping[str, float | None]]) -> tuple[Share, ...]:
    """Mean seconds of each stage and of the trainer's parts, and what no stage claims."""
    whole = _mean(steps, "time/step")
    found = [Share(name, _mean(steps, f"time/{name}"), 0.0) for name in STAGES]
    parts = [Share(f"  {name} (in {of})", _mean(steps, f"time/{name}"), 0.0) for name, of in WITHIN.items()]
    other = Share("other", max(0.0, whole - math.fsum(share.seconds for share in found)), 0.0)
    every = [share for share in (*found, other, *parts) if share.seconds > 0.0]
    return tuple(Share(share.name, share.seconds, share.seconds / whole) for share in every)


def operators(averages: Sequence[Any], steps: int, whole: float) -> tuple[Share, ...]:
    """The operators that take most of `whole` seconds a step, by their own time; all others as one."""
    ranked = sorted(averages, key=lambda event: -event.self_cpu_time_total)
    shown = [
        Share(event.key, event.self_cpu_time_total / 1e6 / steps, 0.0, event.count / steps)
        for event in ranked[:MOST_OPERATORS]
    ]
    rest = math.fsum(event.self_cpu_time_total for event in ranked[MOST_OPERATORS:]) / 1e6 / steps
    calls = sum(event.count for event in ranked[MOST_OPERATORS:]) / steps
    every = [*shown, Share("all other operators", rest, 0.0, calls)]
    outside = Share("outside of operators", max(0.0, whole - math.fsum(share.seconds for share in every)), 0.0)
    return tuple(Share(s.name, s.seconds, s.seconds / whole, s.calls) for s in (*every, outside) if s.seconds > 0.0)


def _mean(steps: Sequence[Mapping[str, float | None]], key: str) -> float:
    return math.fsum(step.get(key) or 0.0 for step in steps) / len(steps)


def _table(title: str, shares: Sequence[Share]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=False)
    for column in ("name", "ms", "share", "bar", "calls"):
        table.add_column(column, justify="right" if column in ("ms", "share", "calls") else "left")
    for share in shares:
        calls = f"{share.calls:,.0f} calls" if share.calls else ""
        bar = "\u2588" * round(24 * share.fraction)
        table.add_row(share.name, f"{1e3 * share.seconds:,.0f} ms", f"{share.fraction:.1%}", bar, calls)
    return table
