"""What tests of the auditor share: real tiny networks, one clean run, and broken ones, as a probe looks at them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from typing import Any

import pytest

from lockstep.core import SamplingParams
from lockstep.harness.faults import INJECTIONS
from lockstep.harness.laboratory import Laboratory
from lockstep.harness.networks import Networks
from lockstep.harness.scoreboard import auditor_of
from lockstep.harness.setup import Setup
from lockstep.parity.evidence import Evidence
from lockstep.parity.observation import Sample
from lockstep.parity.probe import Look

ASKED = {field.name for field in fields(SamplingParams)} - {field.name for field in fields(Setup)}
OF_OBSERVATION = {"step", "samples", "engine", "trainer", "expected", "metrics", "requests", "history"}

PER_TOKEN = ("token_ids", "sampler", "trainer", "again", "current", "reference", "versions", "path", "mask")


def setup_of(chosen: dict[str, Any]) -> Setup:
    """A setup with these fields, those of its sampling parameters too."""
    asked = {name: chosen[name] for name in chosen.keys() & ASKED}
    setup = Setup(**{name: value for name, value in chosen.items() if name not in ASKED})
    return replace(setup, params=replace(setup.params, **asked))


@contextmanager
def second_step(networks: Networks, chosen: dict[str, Any], install: Callable[[Laboratory], None]) -> Iterator[Look]:
    """The look at a step that follows a clean one."""
    with Laboratory(networks, setup_of(chosen)) as laboratory:
        auditor = auditor_of(laboratory)
        before = [laboratory.observe()]
        install(laboratory)
        laboratory.advance()
        yield Look(laboratory.observe(), auditor.reference, auditor.subject, before)


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    return Networks(tmp_path_factory.mktemp("networks"))


@pytest.fixture(scope="session")
def clean(networks: Networks) -> Iterator[Look]:
    """A run in which nothing is wrong, after its first update."""
    with second_step(networks, {}, lambda _: None) as look:
        yield look


@pytest.fixture(scope="session")
def clean_in_flight(networks: Networks) -> Iterator[Look]:
    """The same, where the update came while tokens were drawn."""
    with second_step(networks, {"in_flight": True}, lambda _: None) as look:
        yield look


@pytest.fixture(scope="session")
def recorded(networks: Networks) -> Callable[..., Look]:
    """The first step on which a fault acts, as it was recorded: `recorded("WGT01")`; fields of the setup as given.

    Nobody is alive any more, so it has no subject, and tests share it.
    """
    kept: dict[str, Look] = {}

    def look(code: str, **chosen: Any) -> Look:
        name = f"{code} {sorted(chosen.items())}"
        if name not in kept:
            injection = INJECTIONS[code]
            with second_step(networks, {**injection.setup, **chosen}, injection.install) as found:
                kept[name] = replace(found, subject=None)
        return kept[name]

    return look


@pytest.fixture
def broken(networks: Networks) -> Iterator[Callable[..., Look]]:
    """The same with the engine alive, and as broken as it was, until the test ends."""
    with ExitStack() as opened:

        def look(code: str, **chosen: Any) -> Look:
            injection = INJECTIONS[code]
            return opened.enter_context(second_step(networks, {**injection.setup, **chosen}, injection.install))

        yield look


@pytest.fixture(scope="session")
def like() -> Callable[..., Look]:
    """A look like another one but for some fields, its own or its observation's; what was scored is not kept."""

    def changed(look: Look, **other: Any) -> Look:
        inner = {name: other.pop(name) for name in other.keys() & OF_OBSERVATION}
        observation = replace(look.observation, **inner)
        own = {"reference": look.reference, "subject": look.subject, "before": look.before, "grain": look.grain}
        return Look(observation, **{**own, **other})

    return changed


@pytest.fixture(scope="session")
def emptied() -> Callable[[Sample], Sample]:
    """The same sample, ended before its first token."""

    def cut(sample: Sample) -> Sample:
        series = {name: getattr(sample, name) for name in PER_TOKEN}
        return replace(sample, spans=(), **{n: None if v is None else v[:0] for n, v in series.items()})

    return cut


class Limited:
    """A live engine that says it can do less than it can."""

    def __init__(self, subject: Any, can: frozenset[str]) -> None:
        self._subject, self.can = subject, can

    def __getattr__(self, name: str) -> Any:
        return getattr(self._subject, name)


@pytest.fixture(scope="session")
def without() -> Callable[..., Any]:
    """The subject of a look, less a capability."""
    return lambda look, *lost: Limited(look.subject, look.subject.can - set(lost))


@pytest.fixture(scope="session")
def codes() -> Callable[[Any], list[str]]:
    """What pieces of evidence name, the one that explains most first."""

    def named(found: list[Evidence]) -> list[str]:
        return [e.code for e in sorted(found, key=lambda e: -e.explained)]

    return named
