"""Observers hear everything, in order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lockstep.config import RunConfig
from lockstep.trace import Observer, Observers


class Recorder:
    def __init__(self, name: str, heard: list[tuple[Any, ...]]) -> None:
        self.name, self.heard = name, heard

    def on_start(self, config: RunConfig, manifest: Mapping[str, Any]) -> None:
        self.heard.append((self.name, "start", config.model, manifest["seed"]))

    def on_phase(self, name: str, done: int, total: int) -> None:
        self.heard.append((self.name, name, done, total))

    def on_step(self, step: int, metrics: Mapping[str, float | None]) -> None:
        self.heard.append((self.name, step, metrics["reward"]))

    def on_end(self, summary: Mapping[str, Any]) -> None:
        self.heard.append((self.name, summary["outcome"]))


def test_every_observer_hears_every_event_in_order() -> None:
    heard: list[tuple[Any, ...]] = []
    observers = Observers([Recorder("a", heard), Recorder("b", heard)])
    assert isinstance(observers, Observer)
    observers.on_start(RunConfig(model="tiny"), {"seed": 3})
    observers.on_phase("rollout", 1, 2)
    observers.on_step(1, {"reward": 0.5})
    observers.on_end({"outcome": "finished"})
    each = [("start", "tiny", 3), ("rollout", 1, 2), (1, 0.5), ("finished",)]
    assert heard == [(name, *event) for event in each for name in ("a", "b")]


def test_none_is_a_run_that_nobody_watches() -> None:
    Observers([]).on_end({"outcome": "finished"})
