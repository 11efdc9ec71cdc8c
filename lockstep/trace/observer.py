"""Who may watch a run: the `Observer` protocol and a fan-out to several.

In: what the loop tells (configuration, phases, metrics, outcome). Out: nothing; an observer cannot change a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from lockstep.config import RunConfig

OUTCOMES = ("finished", "refused", "interrupted", "failed")
"""How a run may end; `refused` means that a gate did not admit a step."""


@runtime_checkable
class Observer(Protocol):
    """Told about a run in this order: `on_start`, then phases and steps, then `on_end`, which comes however it ends."""

    def on_start(self, config: RunConfig, manifest: Mapping[str, Any]) -> None:
        """The run begins or resumes; `manifest["directory"]` is where it writes."""
        ...

    def on_phase(self, name: str, done: int, total: int) -> None:
        """Work within a step, e.g. ``("rollout", 412, 1024)`` tokens. `total == 0`: its size is not known."""
        ...

    def on_step(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """A step is over, or an evaluation (then only `eval/*` keys); `metrics` is what was written to disk."""
        ...

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """The run is over. Keys, all but `outcome` optional: outcome (one of `OUTCOMES`), reason, steps, seconds,

        accuracy_before, accuracy_after, parity_max, parity_tokens, report (path), directory (path).
        """
        ...


class Observers:
    """Passes every event to each of `observers`, in order."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)

    def on_start(self, config: RunConfig, manifest: Mapping[str, Any]) -> None:
        for observer in self._observers:
            observer.on_start(config, manifest)

    def on_phase(self, name: str, done: int, total: int) -> None:
        for observer in self._observers:
            observer.on_phase(name, done, total)

    def on_step(self, step: int, metrics: Mapping[str, float | None]) -> None:
        for observer in self._observers:
            observer.on_step(step, metrics)

    def on_end(self, summary: Mapping[str, Any]) -> None:
        for observer in self._observers:
            observer.on_end(summary)
