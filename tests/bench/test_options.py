from __future__ import annotations

import sys

import pytest

from bench.options import Options, program
from lockstep.errors import InputError

NAMES, OTHERS = ("lockstep", "a", "b"), ("c",)


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ((), ["lockstep", "a", "b"]),
        (("b",), ["lockstep", "b"]),
        (("c", "a"), ["lockstep", "a", "c"]),
        (("lockstep",), ["lockstep"]),
    ],
)
def test_ours_always_takes_part_and_others_if_they_are_named(only, expected):
    assert Options(only=only).chosen(NAMES, OTHERS) == expected


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(InputError, match=r"nobody.*lockstep, a, b, c"):
        Options(only=("a", "nobody")).chosen(NAMES, OTHERS)


def test_everybody_has_as_many_threads(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCKSTEP_HOME", str(tmp_path))
    options = Options(threads=3)
    assert options.variables()["OMP_NUM_THREADS"] == "3"
    assert options.logs("rollout") == tmp_path / "bench" / "logs" / "rollout"


def test_ours_runs_in_this_very_environment():
    found = program("lockstep", "lockstep_engine", None, {"threads": 1}, {"A": "b"})
    assert str(found.python) == sys.executable and found.script.exists()
    assert (found.settings, found.variables) == ({"threads": 1}, {"A": "b"})
