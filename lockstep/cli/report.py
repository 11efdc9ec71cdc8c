"""Writes the report when a run ends, before the view says where it lies.

In: the events of an `Observer`. Out: `report.html`, whether the run finished, was refused, or failed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lockstep.config import RunConfig
from lockstep.dashboard import report
from lockstep.trace import RunDirectory


class ReportAtEnd:
    """An observer that only waits for the end."""

    def __init__(self, run: RunDirectory, decode: Callable[[Sequence[int]], str]) -> None:
        self._run, self._decode = run, decode

    def on_start(self, config: RunConfig, manifest: Mapping[str, Any]) -> None: ...

    def on_phase(self, name: str, done: int, total: int) -> None: ...

    def on_step(self, step: int, metrics: Mapping[str, float | None]) -> None: ...

    def on_end(self, summary: Mapping[str, Any]) -> None:  # noqa: ARG002 - the page reads it from the manifest
        report.write(self._run, self._decode)
