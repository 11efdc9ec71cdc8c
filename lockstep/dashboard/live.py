"""The terminal while a run trains: a live view, one line a step, or nothing.

In: the events of an `Observer`. Out: text. The live view redraws in place four times a second; it keeps the same rows
from the first frame on, so that nothing jumps, and fits in 80 columns.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TextIO, cast

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lockstep.config import RunConfig
from lockstep.dashboard.progress import MARKS, STEP_PHASES, Progress, verdict, where
from lockstep.dashboard.units import ABSENT, clock, count, duration, exact, fixed, sparkline

LABEL = 10
WIDEST = 110


def view(console: Console, *, plain: bool = False, silent: bool = False) -> LiveView | LineView | SilentView:
    """The view for `console`: live on a terminal, lines in a pipe or a log or with `plain`, none with `silent`.

    A terminal that cannot move its cursor, or has no characters for bars, gets lines as well.
    """
    if silent:
        return SilentView()
    if plain or not console.is_terminal or console.is_dumb_terminal or console.options.ascii_only:
        return LineView(cast(TextIO, console.file))
    return LiveView(console)


class SilentView:
    """Says nothing; for `--json`."""

    def on_start(self, config: RunConfig, manifest: Mapping[str, Any]) -> None: ...

    def on_phase(self, name: str, done: int, total: int) -> None: ...

    def on_step(self, step: int, metrics: Mapping[str, float | None]) -> None: ...

    def on_end(self, summary: Mapping[str, Any]) -> None: ...

    def close(self) -> None:
        """End the view. Safe to call twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class LineView(SilentView):
    """One line a step. A reader that goes away (`| head`) or a full disk silences it; the run goes on."""

    def __init__(self, stream: TextIO, progress: Progress | None = None) -> None:
        self._stream = stream
        self._progress = progress or Progress()
        self._phase = ""
        self._lost = False

    def on_start(self, config: RunConfig, manifest: Mapping[str, Any]) -> None:
        self._progress.start(config, manifest)
        place = f" in {self._progress.directory}" if self._progress.directory else ""
        self._say(f"{self._progress.title}, {count(config.max_steps)} steps{place}")

    def on_phase(self, name: str, done: int, total: int) -> None:
        if name != self._phase and name not in STEP_PHASES:
            self._say(f"{name} ({count(total - done)})" if total else name)
        self._phase = name

    def on_step(self, step: int, metrics: Mapping[str, float | None]) -> None:
        progress = self._progress
        progress.advance(step, metrics)
        if metrics.get("eval/accuracy") is not None:
            tasks = f" over {count(metrics.get('eval/num_tasks'))} tasks" if metrics.get("eval/num_tasks") else ""
            self._say(f"held-out accuracy {fixed(metrics['eval/accuracy'])}{tasks} after step {step}")
        if "reward" in metrics:
            parity = f"parity {exact(metrics.get('parity/max'))} ({count(metrics.get('parity/num_tokens'))})"
            self._say(
                f"step {step}/{progress.total}  reward {fixed(metrics['reward'])}  {parity}"
                f"{'' if progress.parity_exact else ' DIFFERS'}  entropy {fixed(metrics.get('entropy'), 2)}"
                f"  {count(metrics.get('throughput/tokens_per_s'))} tok/s  {clock(progress.left)} left"
            )

    def on_end(self, summary: Mapping[str, Any]) -> None:
        mark = "" if summary["outcome"] == "finished" else f"{MARKS[summary['outcome']]}: "
        lies = f": {where(summary)}" if where(summary) else ""
        self._say(f"{mark}{verdict(summary)}{lies}")

    def _say(self, line: str) -> None:
        if self._lost:
            return
        try:
            encoding = self._stream.encoding or "ascii"
            self._stream.write(line.replace(ABSENT, "-").encode(encoding, "backslashreplace").decode(encoding) + "\n")
            self._stream.flush()
        except OSError:
            self._lost = True
            with open(os.devnull, "w") as nowhere:  # noqa: PTH123  # what is buffered must not fail again at exit
                os.dup2(nowhere.fileno(), self._stream.fileno())


class LiveView(SilentView):
    """Redraws progress, reward, parity, policy and speed in place."""

    def __init__(self, console: Console, progress: Progress | None = None) -> None:
        self._console = console
        self._progress = progress or Progress()
        self._live = Live(self, console=console, refresh_per_second=4, transient=False)
        self._over = False

    def on_start(self, config: RunConfig, manifest: Mapping[str, Any]) -> None:
        self._progress.start(config, manifest)
        self._live.start(refresh=True)

    def on_phase(self, name: str, done: int, total: int) -> None:
        self._progress.phase = (name, done, total)

    def on_step(self, step: int, metrics: Mapping[str, float | None]) -> None:
        self._progress.advance(step, metrics)

    def on_end(self, summary: Mapping[str, Any]) -> None:
        self._progress.refused = summary["outcome"] == "refused"
        self.close()
        style = "not dim bold green" if summary["outcome"] == "finished" else "not dim bold red"
        grid = _grid(self._console.options.max_width)
        grid.add_row("", "")
        grid.add_row(Text(MARKS[summary["outcome"]], style=style), Text(verdict(summary), overflow="fold"))
        if where(summary):
            grid.add_row("results", Text(where(summary), style="bold", overflow="fold"))
        self._console.print(grid)

    def close(self) -> None:
        self._over = True
        self._live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = _room(options.max_width)
        grid = _grid(options.max_width)
        for label, value in self._rows(room):
            if isinstance(value, Text):
                value.no_wrap, value.overflow = True, "ellipsis"
            grid.add_row(label, value)
        yield grid

    def _rows(self, room: int) -> list[tuple[str, Text | Table]]:
        progress = self._progress
        name, done, total = progress.phase
        step = f"{progress.step}/{progress.total}"
        left = f"  {clock(progress.left)} left" if progress.left is not None and not self._over else ""
        amount = f"{count(done)}/{count(total)}" if total else count(done) if done else ""
        rows: list[tuple[str, Text | Table]] = [
            ("lockstep", Text.assemble((progress.title, "bold"), "  ", progress.directory)),
            ("", Text()),
            ("step", _bar(progress.step, progress.total, (step, clock(progress.elapsed) + left), room)),
        ]
        if not self._over:
            rows.append((name or "waiting", _bar(done, total, (amount, ""), room)))
        return [
            *rows,
            ("", Text()),
            ("reward", self._reward(room)),
            ("parity", self._parity()),
            ("policy", self._pairs(_POLICY)),
            ("speed", self._pairs(_SPEED)),
            ("held out", self._held_out()),
        ]

    def _reward(self, room: int) -> Text:
        progress = self._progress
        if not progress.rewards:
            return Text(ABSENT, style="dim")
        line = sparkline(list(progress.rewards), min(40, room - 30))
        first = f"  {fixed(progress.first_reward)} at first"
        return Text.assemble((line, "cyan"), "  ", (fixed(progress.rewards[-1]), "bold"), (first, "dim"))

    def _parity(self) -> Text:
        progress = self._progress
        if progress.refused:
            return Text(f"step {progress.step + 1} refused: engine and trainer differ", style="bold red")
        if not progress.metrics:
            return Text(ABSENT, style="dim")
        tokens = count(progress.metrics.get("parity/num_tokens"))
        if progress.parity_exact:
            so_far = f"  {count(progress.parity_tokens)} so far"
            return Text.assemble((f"0.0 exactly over {tokens} tokens", "bold green"), (so_far, "dim"))
        share = progress.metrics.get("parity/frac_differing") or 0.0
        worst = exact(progress.metrics.get("parity/max"))
        what = f"{share:.2%} of {tokens} tokens differ, by up to {worst}" if share else f"{tokens} tokens compared"
        return Text(("refused: " if progress.gated else "not gated: ") + what, style="bold red")

    def _pairs(self, named: Sequence[tuple[str, str, int, str]]) -> Text:
        text = Text()
        for label, key, digits, unit in named:
            value = self._progress.metrics.get(key)
            said = (
                duration(value)
                if key.startswith("time/")
                else fixed(value, digits) + (unit if value is not None else "")
            )
            text.append_text(Text.assemble(("  " if text else "") + label + " ", (said, "not dim"), style="dim"))
        return text

    def _held_out(self) -> Text:
        known = self._progress.accuracies
        if not known:
            return Text(ABSENT, style="dim")
        shown = known if len(known) <= 3 else [known[0], *known[-2:]]
        text = Text(" → ").join(Text(f"{value:.2f}", style="bold") for _, value in shown)
        return text.append(f"  after step {known[-1][0]}" if known[-1][0] else "  before the first step", style="dim")


_POLICY = (
    ("entropy", "entropy", 3, ""),
    ("kl", "kl_new_old", 4, ""),
    ("clip", "clamp_log_ratio_new_old_indicator", 3, ""),
    ("ess", "ess", 3, ""),
    ("grad", "grad_norm", 2, ""),
)
_SPEED = (
    ("speed", "throughput/tokens_per_s", 0, " tok/s"),
    ("rollout", "throughput/rollout_tokens_per_s", 0, " tok/s"),
    ("step", "time/step", 1, ""),
    ("peak", "memory/peak_gb", 1, " GB"),
)


def _room(width: int) -> int:
    """Columns right of the labels."""
    return max(min(width, WIDEST) - LABEL - 4, 10)


def _grid(width: int) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=LABEL, style="dim", no_wrap=True)
    grid.add_column(width=_room(width))
    return grid


def _bar(done: int, total: int, said: tuple[str, str], room: int) -> Table:
    """A bar with an amount and a time beside it. An unknown total gives an empty bar, not a moving one."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=max(room - 34, 4))
    grid.add_column(width=13, no_wrap=True)
    grid.add_column(no_wrap=True, style="dim")
    bar = ProgressBar(total=max(total, 1), completed=min(done, total) if total else 0, complete_style="cyan")
    grid.add_row(bar, said[0], said[1])
    return grid
