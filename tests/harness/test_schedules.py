"""A short slice of the random schedules; `lockstep prove schedules` runs as many as one likes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lockstep.core import Span
from lockstep.engine import Engine
from lockstep.engine.cache import PagePool
from lockstep.engine.kv import KeyValues
from lockstep.engine.scheduler import Scheduler
from lockstep.harness.networks import Networks
from lockstep.harness.schedules import Findings, Schedule


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    return Networks(tmp_path_factory.mktemp("networks"))


@pytest.mark.parametrize("block", range(4))
def test_random_schedules_differ_in_no_bit(networks: Networks, block: int) -> None:
    found = sum((Schedule(networks, seed).run() for seed in range(block * 50, block * 50 + 50)), Findings())
    assert found.wrong == ""
    assert (found.schedules, found.differing, found.leaked_pages) == (50, 0, 0)
    for what in ("tokens", "prompt_tokens", "mixed_tokens", "prefix_tokens", "preemptions", "updates", "aborts"):
        assert getattr(found, what) > 5, f"the slice exercises {what}"


def test_a_schedule_is_a_function_of_its_seed(networks: Networks, tmp_path: Path) -> None:
    assert Schedule(networks, 7).run() == Schedule(Networks(tmp_path), 7).run()


def _first_wrong(networks: Networks) -> str:
    return next((wrong for seed in range(300) if (wrong := Schedule(networks, seed).run().wrong)), "")


def test_a_stale_prefix_cache_is_found(networks: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    """CAC01, the fault of four frameworks: prefixes of old weights are found after an update, and nobody says so."""
    serving = [0]
    real = Scheduler.new_weights

    def note(self: Scheduler, version: int, *rest: Any) -> None:
        serving[0] = version
        real(self, version, *rest)

    def unaware(self: PagePool, page: int) -> tuple[Span, ...]:
        return tuple(replace(span, version=serving[0]) for span in self._spans[page])

    monkeypatch.setattr(Scheduler, "new_weights", note)
    monkeypatch.setattr(PagePool, "forget_all", lambda self: None)
    monkeypatch.setattr("lockstep.engine.scheduler.root_key", lambda salt: b"the same for all")
    monkeypatch.setattr(PagePool, "spans", unaware)
    assert "differ" in _first_wrong(networks)


def test_a_page_that_is_not_copied_is_found(networks: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeyValues, "copy", lambda self, pairs: None)
    assert "differ" in _first_wrong(networks)


def test_a_leak_is_found(networks: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "check", lambda self: None)
    monkeypatch.setattr(Scheduler, "_release", lambda self, completion: None)
    assert "pages are still held" in Schedule(networks, 3).run().wrong


def test_findings_add_up_and_keep_the_first_fault() -> None:
    both = Findings(schedules=1, tokens=2, wrong="a") + Findings(schedules=1, tokens=3, wrong="b")
    assert both == replace(Findings(), schedules=2, tokens=5, wrong="a")
    assert not both.clean
