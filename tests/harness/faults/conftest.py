"""What the tests of injected faults share: the story of one broken run, next to the same run unbroken."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest

from lockstep.harness.faults import INJECTIONS
from lockstep.harness.injection import Injection
from lockstep.harness.laboratory import Laboratory
from lockstep.harness.networks import Networks
from lockstep.harness.setup import Setup
from lockstep.parity.hypothesis import AS_STATED, Hypothesis
from lockstep.parity.observation import Observation, Sample
from lockstep.pipeline.reference import NativeReference


@dataclass(frozen=True)
class Story:
    """`before`: steps up to the onset, `at`: the onset, `later`: the step after. `clean`: all these without the fault.

    `replaced`: what of lockstep was replaced while the laboratory was open; `left` what still was after it had closed.
    `again`: the first step of a laboratory that was opened afterwards.
    """

    injection: Injection
    lab: Laboratory
    before: Sequence[Observation]
    at: Observation
    later: Observation
    clean: Sequence[Observation]
    replaced: frozenset[str]
    left: frozenset[str]
    again: Observation

    def explained(self, seen: Observation, hypothesis: Hypothesis = AS_STATED) -> list[np.ndarray]:
        """What the reference says of the samples of a step, with the weights that there were then."""
        lab = self.lab
        held = {number: params for number, params in lab.history.items() if number < seen.step}
        masters = {"masters": lab.trainer.optimizer.masters}
        reference = NativeReference(lab.network.model.arch, held, masters, lab.setup.dtype)
        return reference.score(seen.samples, hypothesis)


def names() -> dict[str, object]:
    """Everything that can be replaced in lockstep's modules and classes, by its full name."""
    found: dict[str, object] = {}
    for name, module in list(sys.modules.items()):
        if name.startswith("lockstep."):
            for own, value in list(vars(module).items()):
                found[f"{name}.{own}"] = value
                if isinstance(value, type) and value.__module__ == name:
                    found |= {f"{name}.{own}.{part}": inner for part, inner in vars(value).items()}
    return found


def changed(before: Mapping[str, object], after: Mapping[str, object]) -> frozenset[str]:
    return frozenset(name for name in before.keys() & after.keys() if before[name] is not after[name])


def steps(laboratory: Laboratory, count: int) -> list[Observation]:
    seen = [laboratory.observe()]
    for _ in range(count - 1):
        laboratory.advance()
        seen.append(laboratory.observe())
    return seen


@pytest.fixture(scope="session")
def tell(networks: Networks, small: Callable[..., Setup]) -> Callable[..., Story]:
    """The story of one fault, told once; `fields` of the setup besides those that the fault needs."""
    cleanly: dict[Setup, list[Observation]] = {}

    @cache
    def told(code: str, **fields: Any) -> Story:
        injection = INJECTIONS[code]
        setup, onset = small(**{"seed": 1, **fields, **injection.setup}), injection.onset
        if setup not in cleanly:
            with Laboratory(networks, setup) as unbroken:
                cleanly[setup] = steps(unbroken, onset + 1)
        whole = names()
        with Laboratory(networks, setup) as lab:
            before = steps(lab, onset - 1)
            injection.install(lab)
            replaced = changed(whole, names())
            lab.advance()
            at, later = steps(lab, 2)
        left = changed(whole, names())
        with Laboratory(networks, setup) as fresh:
            again = fresh.observe()
        return Story(injection, lab, before, at, later, cleanly[setup], replaced, left, again)

    return told


@pytest.fixture(scope="session")
def like(same_bits: Callable[[Any, Any], bool]) -> Callable[[Observation, Observation], bool]:
    """Whether two observations are of the same tokens, scored alike, with the same statements."""

    def alike(one: Sample, other: Sample) -> bool:
        series = ("sampler", "trainer", "current", "reference")
        return (
            one.id == other.id
            and np.array_equal(one.token_ids, other.token_ids)
            and all(same_bits(getattr(one, name), getattr(other, name)) for name in series)
        )

    def same(one: Observation, other: Observation) -> bool:
        pairs = zip(one.samples, other.samples, strict=True)
        return all(alike(a, b) for a, b in pairs) and (one.engine, one.trainer) == (other.engine, other.trainer)

    return same


@pytest.fixture(scope="session")
def moved(same_bits: Callable[[Any, Any], bool]) -> Callable[[Observation], bool]:
    """Whether engine and trainer say different things."""
    return lambda seen: not all(same_bits(sample.sampler, sample.trainer) for sample in seen.samples)


@pytest.fixture(scope="module")
def story(tell: Callable[..., Story], request: pytest.FixtureRequest) -> Story:
    """The story of the code that a test is parametrised with."""
    return tell(request.param)
