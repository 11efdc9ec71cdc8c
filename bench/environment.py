"""Which environment a peer needs: its requirements, and what a requirements file cannot say.

In: the name of a peer. Out: the path of a Python that has what the peer needs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lockstep.adapters.engines.environment import VLLM, Recipe, Run
from lockstep.adapters.engines.environment import home_of as home
from lockstep.adapters.engines.environment import python_of as made

PEERS = Path(__file__).with_name("peers")

RECIPES = {
    "llama_cpp": Recipe(
        variables={"CMAKE_ARGS": "-DGGML_NATIVE=ON"},
        compiles=True,
        note="llama.cpp is compiled, about ten minutes, once",
    ),
}


def python_of(name: str, announce: Callable[[str], None], run: Run | None = None) -> Path:
    """The Python of the environment of peer `name`, made if need be. Raises as `engines.environment.python_of`."""
    return made(*_needs(name), announce, run)


def home_of(name: str) -> Path:
    """Where the environment of peer `name` is or will be."""
    return home(*_needs(name))


def _needs(name: str) -> tuple[Path, Recipe]:
    return VLLM if name == "vllm" else (PEERS / f"{name}.txt", RECIPES.get(name, Recipe()))
