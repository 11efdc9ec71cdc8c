"""Each peer's own virtual environment, made once and kept in Lockstep's cache.

In: the name of a requirements file in bench/peers. Out: the path of a Python that has what the peer needs.

    bench/peers/NAME.txt + recipe --digest--> cache/bench/NAME-DIGEST/   venv, pip install, marker last

A peer's pins clash with ours and with those of other peers. An environment without its marker was left half-made and is
made anew.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lockstep.config import cache_dir
from lockstep.errors import InputError, StageError, message

PEERS = Path(__file__).with_name("peers")
MARKER = ".ready"
COMPILERS = ("c++", "g++", "clang++")


class NoCompiler(InputError):
    """A peer is built from source, and nothing here can build it; its row is skipped."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a requirements file cannot say: variables of the installation, packages to remove after it, a warning."""

    variables: Mapping[str, str] = field(default_factory=dict)
    remove: tuple[str, ...] = ()
    compiles: bool = False
    note: str = "some minutes, once"


RECIPES = {
    # Their wheels want another torch than the CPU build, and text needs none of them.
    "vllm": Recipe(remove=("torchvision", "torchaudio", "torchcodec")),
    "llama_cpp": Recipe(
        variables={"CMAKE_ARGS": "-DGGML_NATIVE=ON"},
        compiles=True,
        note="llama.cpp is compiled, about ten minutes, once",
    ),
}

Run = Callable[[list[str]], None]


def python_of(name: str, announce: Callable[[str], None], run: Run | None = None) -> Path:
    """The Python of the environment for `bench/peers/{name}.txt`, made if need be, which is announced.

    Raises `NoCompiler`, and `StageError` if the installation fails.
    """
    run = run or _run
    requirements = PEERS / f"{name}.txt"
    recipe = RECIPES.get(name, Recipe())
    home = home_of(name)
    python = home / "bin" / "python"
    if (home / MARKER).exists():
        return python
    if recipe.compiles and not any(shutil.which(compiler) for compiler in COMPILERS):
        raise NoCompiler(
            message(
                f"environment ({name})", "it is compiled on this machine", got="no compiler",
                expected=f"one of {', '.join(COMPILERS)}", do="Install a C++ compiler; until then this row is skipped",
            )
        )  # fmt: skip
    announce(f"{name}: setting up its environment ({recipe.note})")
    shutil.rmtree(home, ignore_errors=True)
    run([sys.executable, "-m", "venv", str(home)])
    pip = ["env", *(f"{k}={v}" for k, v in recipe.variables.items()), str(python), "-m", "pip", "--quiet"]
    pip.append("--disable-pip-version-check")
    for torch in pins_of(requirements, "torch"):
        run([*pip, "install", torch])  # by itself, so that the build this machine's pip is set up for is taken and kept
    run([*pip, "install", "--requirement", str(requirements)])
    if recipe.remove:
        run([*pip, "uninstall", "--yes", *recipe.remove])
    (home / MARKER).touch()
    return python


def home_of(name: str) -> Path:
    """Where the environment of `name` is or will be; another pin, recipe or Python is another place."""
    parts = (PEERS / f"{name}.txt").read_text(encoding="utf-8"), repr(RECIPES.get(name)), sys.version
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
    return cache_dir() / "bench" / f"{name}-{digest}"


def pins_of(requirements: Path, package: str) -> list[str]:
    """The line that pins `package`, if there is one."""
    lines = (line.partition("#")[0].strip() for line in requirements.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line.startswith(f"{package}==")]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StageError(
            message(
                "environment", "its installation must succeed", got=f"exit code {done.returncode}",
                expected=" ".join(command), do=f"pip said:\n{(done.stdout + done.stderr).strip()[-2000:]}\n",
            )
        )  # fmt: skip
