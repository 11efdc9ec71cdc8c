"""Finding a user's function."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

from lockstep.errors import InputError
from lockstep.rewards.dotted_path import find

SOURCE = """
class Judge:
    def score(self, task, rollout):
        return 1.0

judge = Judge()
constant = 3

def reward(task, rollout):
    return 0.5
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a module of its own, which Python forgets afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    before = set(sys.modules)
    (tmp_path / "own_rewards.py").write_text(SOURCE)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_in_a_library():
    assert find("math.sqrt") is math.sqrt
    assert find("json:JSONDecoder.decode") is json.JSONDecoder.decode


@pytest.mark.parametrize("path", ["own_rewards.reward", "own_rewards:reward", "own_rewards.py:reward"])
def test_in_the_working_directory(folder: Path, path: str):
    assert find(path)(None, None) == 0.5


def test_in_a_file_elsewhere(folder: Path):
    (folder / "deep").mkdir()
    (folder / "own_rewards.py").rename(folder / "deep" / "other.py")
    assert find("deep/other.py:judge.score")(None, None) == 1.0
    assert find(f"{folder}/deep/other.py:reward")(None, None) == 0.5


def test_the_working_directory_hides_nothing(folder: Path):
    (folder / "math.py").write_text("def sqrt(x): return 'mine'")
    assert find("math.sqrt") is math.sqrt
    find("own_rewards.reward")
    assert sys.path[-1] == str(folder)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("reward", "a path names a module and a function - got 'reward', expected module.function or file.py:function"),
        (":reward", "a path names a module and a function"),
        ("own_rewards:", "a path names a module and a function"),
        ("no_such.reward", "no_such must be importable - got ModuleNotFoundError: No module named 'no_such'"),
        ("own_rewards.inner.reward", "own_rewards.inner must be importable - got ModuleNotFoundError"),
        ("no_such.py:reward", "no_such.py must be importable - got FileNotFoundError"),
        ("own_rewards.reword", "own_rewards has no reword - got reword, .* Did you mean reward"),
        ("own_rewards:judge.xyz", "own_rewards has no xyz - got xyz, .* Change task.reward"),
        ("own_rewards.constant", "a reward is called - got int, expected a function"),
        ("..reward", "must be importable"),
        ("a\0b.reward", "must be importable"),
    ],
)
def test_what_cannot_be_found(folder: Path, path: str, says: str):
    with pytest.raises(InputError, match=says) as failure:
        find(path)
    assert str(failure.value).startswith(f"reward function ({path}): ")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("1 / 0", "got ZeroDivisionError: division by zero, expected a module that imports without an error"),
        ("def f(:", "got SyntaxError"),
        ("import no_such_library", "got ModuleNotFoundError: No module named 'no_such_library'"),
    ],
)
@pytest.mark.parametrize("path", ["broken.reward", "broken.py:reward"])
def test_modules_that_do_not_import(folder: Path, source: str, says: str, path: str):
    (folder / "broken.py").write_text(source)
    with pytest.raises(InputError, match=f"must be importable - {says}") as failure:
        find(path)
    assert failure.value.__cause__ is not None
