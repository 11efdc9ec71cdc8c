from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from lockstep.adapters.engines import environment
from lockstep.adapters.engines.environment import MARKER, VLLM, NoCompiler, Recipe, home_of, pins_of, python_of
from lockstep.errors import StageError

RECIPE = Recipe({"FLAGS": "-O3"}, ("torchvision", "torchaudio"), note="ten minutes")
CONSTRAINTS = Path(__file__).parents[3] / "constraints.txt"


@pytest.fixture(autouse=True)
def some(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LOCKSTEP_HOME", str(tmp_path / "home"))
    (tmp_path / "plain.txt").write_text("other==1.0\n")
    file = tmp_path / "some.txt"
    file.write_text("torch==2.13.0  # first\nother==1.0\n")
    return file


class Commands:
    """Takes down what would run, and makes what `venv` makes; fails at a command that holds `wrong`."""

    def __init__(self, home: Path, wrong: str = "no such word") -> None:
        self.seen: list[list[str]] = []
        self._home, self._wrong = home, wrong

    def __call__(self, command: list[str]) -> None:
        self.seen.append(command)
        if self._wrong in command:
            raise StageError("pip failed")
        if "venv" in command:
            assert not self._home.exists(), "made anew"
            (self._home / "bin").mkdir(parents=True)


def quiet(_: str) -> None:
    pass


def test_torch_first_then_the_rest_then_what_must_go(some):
    run, said = Commands(home_of(some, RECIPE)), []
    python = python_of(some, RECIPE, said.append, run)
    assert python == home_of(some, RECIPE) / "bin" / "python"
    venv, torch, rest, gone = run.seen
    assert venv[0] == sys.executable and venv[-1] == str(home_of(some, RECIPE))
    assert torch[-2:] == ["install", "torch==2.13.0"] and "FLAGS=-O3" in torch
    assert rest[-2:] == ["--requirement", str(some)]
    assert gone[-4:] == ["uninstall", "--yes", "torchvision", "torchaudio"]
    assert said == ["some: setting up its environment (ten minutes)"]
    assert (home_of(some, RECIPE) / MARKER).exists()
    python_of(some, RECIPE, said.append, run)
    assert len(run.seen) == 4 and len(said) == 1, "it is made once"


@pytest.mark.parametrize("wrong", ["torch==2.13.0", "--requirement", "uninstall"])
def test_one_that_was_left_half_made_is_made_anew(some, wrong):
    with pytest.raises(StageError):
        python_of(some, RECIPE, quiet, Commands(home_of(some, RECIPE), wrong))
    assert not (home_of(some, RECIPE) / MARKER).exists()
    run = Commands(home_of(some, RECIPE))
    python_of(some, RECIPE, quiet, run)
    assert len(run.seen) == 4


def test_another_pin_or_recipe_is_another_place(some):
    before, between = home_of(some, RECIPE), home_of(some, Recipe())
    some.write_text("torch==2.13.1\n")
    assert len({before, between, home_of(some, Recipe())}) == 3


def test_without_a_compiler_nothing_is_begun(some, monkeypatch):
    monkeypatch.setattr(environment, "COMPILERS", ("no-such-compiler",))
    run, compiled = Commands(home_of(some, RECIPE)), Recipe(compiles=True)
    with pytest.raises(NoCompiler, match="left out") as refused:
        python_of(some, compiled, quiet, run)
    assert refused.value.exit_code == 2 and not run.seen


def test_a_failing_installation_says_what_pip_said():
    with pytest.raises(StageError, match="no such wheel"):
        environment._run([sys.executable, "-c", "raise SystemExit('no such wheel')"])
    environment._run([sys.executable, "-c", ""])


def test_vllm_is_pinned_to_the_version_and_runs_on_our_torch():
    for line in VLLM[0].read_text().splitlines():
        assert re.fullmatch(r"[a-z0-9-]+==[0-9.]+", line), line
    assert pins_of(VLLM[0], "torch") == pins_of(CONSTRAINTS, "torch")


def test_pins(tmp_path):
    assert pins_of(tmp_path / "some.txt", "torch") == ["torch==2.13.0"]
    assert pins_of(tmp_path / "plain.txt", "torch") == []
