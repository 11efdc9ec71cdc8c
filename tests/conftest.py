"""What every test shares: one hypothesis profile (first calls build caches: no deadlines), and homes to run in."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

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
