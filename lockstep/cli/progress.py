"""Progress bars on stderr for work that comes in stages, such as a pull."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Literal, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)


class ProgressBars:
    """One bar a stage, shown from its first `update` on; nothing at all if there is no work, or with `silent`."""

    def __init__(self, *, silent: bool = False, unit: Literal["bytes", "steps", "runs"] = "bytes") -> None:
        self._silent = silent
        count = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
        columns = (TextColumn("{task.description}"), BarColumn(), count, TimeRemainingColumn())
        self._progress = Progress(*columns, console=Console(file=sys.stderr))
        self._rows: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._rows:
            self._progress.stop()

    def update(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` units of a stage are behind us; `total` 0 if its size is not known."""
        if self._silent:
            return
        if stage not in self._rows:
            if not self._rows:
                self._progress.start()
            self._rows[stage] = self._progress.add_task(stage, total=total or None)
        self._progress.update(self._rows[stage], completed=done, total=total or None)
