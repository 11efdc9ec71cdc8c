"""Virtual environments for software whose pins clash with ours, each made once and kept in Lockstep's cache.

In: a requirements file, a recipe. Out: the path of a Python that has what it names.

    NAME.txt + recipe --digest--> cache/environments/NAME-DIGEST/   venv, pip install, marker last

An environment without its marker was left half-made and is made anew.
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

MARKER = ".ready"
COMPILERS = ("c++", "g++", "clang++")


class NoCompiler(InputError):
    """It is built from source, and nothing here can build it."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a requirements file cannot say: variables of the installation, packages to remove after it, a warning."""

    variables: Mapping[str, str] = field(default_factory=dict)
    remove: tuple[str, ...] = ()
    compiles: bool = False
    note: str = "some minutes, once"


VLLM = Path(__file__).parent / "workers" / "vllm.txt", Recipe(remove=("torchvision", "torchaudio", "torchcodec"))
"""Its wheels want another torch than the CPU build, and text needs none of them."""

Run = Callable[[list[str]], None]


def python_of(requirements: Path, recipe: Recipe, announce: Callable[[str], None], run: Run | None = None) -> Path:
    """The Python of the environment for a requirements file, made if need be, which is announced.

    Raises `NoCompiler`, and `StageError` if the installation fails.
    """
    run, name = run or _run, requirements.stem
    home = home_of(requirements, recipe)
    python = home / "bin" / "python"
    if (home / MARKER).exists():
        return python
    if recipe.compiles and not any(shutil.which(compiler) for compiler in COMPILERS):
        raise NoCompiler(
            message(
                f"environment ({name})", "it is compiled on this machine", got="no compiler",
                expected=f"one of {', '.join(COMPILERS)}", do="Install a C++ compiler; until then it is left out",
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


def home_of(requirements: Path, recipe: Recipe) -> Path:
    """Where the environment is or will be; another pin, recipe or Python is another place."""
    parts = requirements.read_text(encoding="utf-8"), repr(recipe), sys.version
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
    return cache_dir() / "environments" / f"{requirements.stem}-{digest}"


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
