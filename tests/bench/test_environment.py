from __future__ import annotations

import sys

import pytest

from bench import environment
from bench.environment import MARKER, NoCompiler, Recipe, home_of, pins_of, python_of
from lockstep.errors import StageError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCKSTEP_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(environment, "PEERS", tmp_path)
    (tmp_path / "some.txt").write_text("torch==2.13.0  # first\nother==1.0\n")
    (tmp_path / "plain.txt").write_text("other==1.0\n")
    monkeypatch.setattr(
        environment, "RECIPES", {"some": Recipe({"FLAGS": "-O3"}, ("torchvision", "torchaudio"), note="ten minutes")}
    )


class Commands:
    """Takes down what would run, and makes what `venv` makes; fails at a command that holds `wrong`."""

    def __init__(self, wrong: str = "no such word") -> None:
        self.seen: list[list[str]] = []
        self._wrong = wrong

    def __call__(self, command: list[str]) -> None:
        self.seen.append(command)
        if self._wrong in command:
            raise StageError("pip failed")
        if "venv" in command:
            assert not home_of("some").exists(), "made anew"
            (home_of("some") / "bin").mkdir(parents=True)


def quiet(_: str) -> None:
    pass


def test_torch_first_then_the_rest_then_what_must_go(tmp_path):
    run, said = Commands(), []
    python = python_of("some", said.append, run)
    assert python == home_of("some") / "bin" / "python"
    venv, torch, rest, gone = run.seen
    assert venv[0] == sys.executable and venv[-1] == str(home_of("some"))
    assert torch[-2:] == ["install", "torch==2.13.0"] and "FLAGS=-O3" in torch
    assert rest[-2:] == ["--requirement", str(tmp_path / "some.txt")]
    assert gone[-4:] == ["uninstall", "--yes", "torchvision", "torchaudio"]
    assert said == ["some: setting up its environment (ten minutes)"]
    assert (home_of("some") / MARKER).exists()
    python_of("some", said.append, run)
    assert len(run.seen) == 4 and len(said) == 1, "it is made once"


@pytest.mark.parametrize("wrong", ["torch==2.13.0", "--requirement", "uninstall"])
def test_one_that_was_left_half_made_is_made_anew(wrong):
    with pytest.raises(StageError):
        python_of("some", quiet, Commands(wrong))
    assert not (home_of("some") / MARKER).exists()
    run = Commands()
    python_of("some", quiet, run)
    assert len(run.seen) == 4


def test_another_pin_or_recipe_is_another_place(tmp_path, monkeypatch):
    before = home_of("some")
    monkeypatch.setitem(environment.RECIPES, "some", Recipe())
    between = home_of("some")
    (tmp_path / "some.txt").write_text("torch==2.13.1\n")
    assert len({before, between, home_of("some")}) == 3


def test_without_a_compiler_nothing_is_begun(monkeypatch):
    monkeypatch.setitem(environment.RECIPES, "some", Recipe(compiles=True))
    monkeypatch.setattr(environment, "COMPILERS", ("no-such-compiler",))
    run = Commands()
    with pytest.raises(NoCompiler, match="skipped") as refused:
        python_of("some", quiet, run)
    assert refused.value.exit_code == 2 and not run.seen


def test_a_failing_installation_says_what_pip_said():
    with pytest.raises(StageError, match="no such wheel"):
        environment._run([sys.executable, "-c", "raise SystemExit('no such wheel')"])
    environment._run([sys.executable, "-c", ""])


def test_pins(tmp_path):
    assert pins_of(tmp_path / "some.txt", "torch") == ["torch==2.13.0"]
    assert pins_of(tmp_path / "plain.txt", "torch") == []
