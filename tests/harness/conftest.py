"""What the tests of the harness share: the real tiny networks, and the smallest training that is worth watching."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from lockstep.core import SamplingParams
from lockstep.harness.laboratory import Laboratory
from lockstep.harness.networks import Networks
from lockstep.harness.setup import Setup

SMALL = Setup(
    params=SamplingParams(temperature=0.7, max_tokens=6, n=2, ignore_eos=True),
    prompts=3,
    prefix=34,
    tail=6,
)
ASKED = {field.name for field in fields(SamplingParams)} - {"seed"}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    return Networks(tmp_path_factory.mktemp("networks"))


@pytest.fixture(scope="session")
def small() -> Callable[..., Setup]:
    """A setup of six short completions a step; fields as given, those of `SamplingParams` too."""

    def setup(**given: Any) -> Setup:
        asked = {name: given.pop(name) for name in list(given) if name in ASKED}
        drawn = replace(SMALL, **given)
        return replace(drawn, params=replace(drawn.params, **asked))

    return setup


@pytest.fixture(scope="session")
def opened(networks: Networks, small: Callable[..., Setup]) -> Any:
    """A laboratory of that setup, open for as long as the `with` lasts."""

    @contextmanager
    def lab(**fields: Any) -> Iterator[Laboratory]:
        with Laboratory(networks, small(**fields)) as laboratory:
            yield laboratory

    return lab


@pytest.fixture(scope="session")
def same_bits() -> Callable[[Any, Any], bool]:
    """Whether two float32 series are the same numbers to the last bit."""

    def same(one: np.ndarray | None, other: np.ndarray | None) -> bool:
        assert one is not None and other is not None, "both sides report"
        assert one.dtype == other.dtype == np.float32
        return one.tobytes() == other.tobytes()

    return same
