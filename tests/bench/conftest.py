"""What the tests of the benchmarks share: a tiny model, standings."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.contest import Standing
from lockstep import models
from lockstep.adapters.engines.process import Program
from lockstep.models import Model
from lockstep.models.tiny import build_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    directory.mkdir()
    build_tiny(directory)
    return models.load(str(directory))


@pytest.fixture
def standing() -> Callable[..., Standing]:
    """A standing from seconds, the warm-up's among them."""

    def make(name: str, *seconds: float, **settings: object) -> Standing:
        program = Program(name, Path(sys.executable), Path("script.py"), settings)
        answers = tuple({"seconds": one, "tokens": [[1]]} for one in seconds)
        return Standing(program, {name: "1.0"}, answers, 1.5)

    return make
