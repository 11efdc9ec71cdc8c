"""What the tests of the benchmarks share: contestants that are a few lines of script, and a tiny model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.contest import Standing
from bench.contestant import Entrant
from bench.environment import PEERS
from lockstep import models
from lockstep.models import Model
from lockstep.models.tiny import build_tiny

HEAD = f"""
import json, os, signal, subprocess, sys, time
sys.path.insert(0, {str(PEERS)!r})
from protocol import Channel, serve
"""


@pytest.fixture
def scripted(tmp_path: Path) -> Callable[..., Entrant]:
    """An entrant from the text of its script."""

    def make(body: str, name: str = "one", limit: float = 20.0, **settings: object) -> Entrant:
        script = tmp_path / f"{name}.py"
        script.write_text(HEAD + body)
        return Entrant(name, Path(sys.executable), script, settings, {}, limit, limit)

    return make


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
        entrant = Entrant(name, Path(sys.executable), Path("script.py"), settings)
        answers = tuple({"seconds": one, "tokens": [[1]]} for one in seconds)
        return Standing(entrant, {name: "1.0"}, answers, 1.5)

    return make
