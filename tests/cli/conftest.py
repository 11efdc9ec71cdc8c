"""What the tests of the command line share: a process of its own, a recipe of a few seconds, a cache of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
model = "tiny"
max_steps = 6
num_prompts_per_step = 3
num_generations = 4
threads = 1
[task]
name = "reverse"
length = 2
letters = 4
held_out = 0.25
[sampling]
max_tokens = 5
[engine]
kv_cache_gb = 0.01
[optim]
lr = 1e-3
[warm_start]
steps = 12
batch = 8
lr = 3e-3
[train]
checkpoint_every = 2
"""


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory, new_home) -> Path:
    return new_home(tmp_path_factory.mktemp("home") / "cache")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "quick.toml"
    file.write_text(RECIPE)
    return file


@pytest.fixture
def command(home: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """The arguments of a `lockstep` process."""
    return lambda *arguments: [sys.executable, "-m", "lockstep", *map(str, arguments)]


@pytest.fixture
def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "LOCKSTEP_HOME": str(home), "PYTHONPATH": str(ROOT), "COLUMNS": "100"}


@pytest.fixture
def lockstep(command, environment, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `lockstep` to its end in a directory of its own."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments), cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    return run
