"""Every peer is pinned to the version, and torch is the one that Lockstep runs on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.environment import PEERS, RECIPES, home_of
from lockstep.adapters.engines.environment import VLLM, pins_of
from lockstep.adapters.engines.environment import home_of as home

FILES = sorted(PEERS.glob("*.txt"))
CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_exact_versions(file):
    for line in file.read_text().splitlines():
        assert re.fullmatch(r"[a-z0-9-]+==[0-9.]+", line), line
    assert pins_of(file, "torch") in ([], pins_of(CONSTRAINTS, "torch"))


def test_recipes_are_of_peers():
    assert set(RECIPES) <= {file.stem for file in FILES}


def test_vllm_is_the_one_that_is_audited():
    assert home_of("vllm") == home(*VLLM)
    assert home_of("llama_cpp").name.startswith("llama_cpp-")
