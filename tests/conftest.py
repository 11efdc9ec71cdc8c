"""What every test shares: one hypothesis profile (first calls build caches: no deadlines), and homes to run in."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from lockstep.adapters.engines.process import PROTOCOL, Program
from lockstep.config import cache_dir

# CI draws the same examples every time; elsewhere new ones are drawn, and a failure prints how to repeat it.
settings.register_profile("lockstep", deadline=None, print_blob=True, derandomize=bool(os.environ.get("CI")))
settings.load_profile("lockstep")

KERNELS = cache_dir() / "kernels"


@pytest.fixture(scope="session")
def new_home() -> Callable[[Path], Path]:
    """Makes a directory that is as good as an empty `$LOCKSTEP_HOME`, but for kernels that are compiled already: other
    processes would compile them again in every home."""

    def make(home: Path) -> Path:
        KERNELS.mkdir(parents=True, exist_ok=True)
        home.mkdir(parents=True, exist_ok=True)
        (home / "kernels").symlink_to(KERNELS, target_is_directory=True)
        return home

    return make


HEAD = f"""
import json, os, signal, subprocess, sys, time
sys.path.insert(0, {str(PROTOCOL)!r})
from protocol import Channel, serve
"""


@pytest.fixture
def scripted(tmp_path: Path) -> Callable[..., Program]:
    """A program from the text of its script."""

    def make(body: str, name: str = "one", limit: float = 20.0, **settings: object) -> Program:
        script = tmp_path / f"{name}.py"
        script.write_text(HEAD + body)
        return Program(name, Path(sys.executable), script, settings, {}, limit, limit)

    return make
