"""`lockstep faults score` as a user meets it: cases are real runs, the bars decide the exit code."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lockstep.cli import scoreboard as command
from lockstep.errors import InputError
from lockstep.harness import scoreboard
from lockstep.harness.faults import INJECTIONS
from lockstep.harness.scoreboard import Case
from lockstep.parity.catalogue import CATALOGUE


@pytest.fixture(autouse=True)
def as_many_threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def nothing_is_put_in(monkeypatch) -> str:
    """One fault of the catalogue does nothing, so that no auditor can see it."""
    harmless = replace(INJECTIONS["NUM06"], install=lambda _: None)
    monkeypatch.setattr(scoreboard, "INJECTIONS", {**INJECTIONS, "NUM06": harmless})
    return "NUM06"


# -- in this process


def test_a_fault_that_is_found_reaches_every_bar(capsys) -> None:
    assert command.score(seeds=2, clean=0, code=("NUM06",)) == 0
    printed = capsys.readouterr().out
    assert "| NUM06 | 2 | NUM06 2 | 0 |" in printed
    assert "2 runs, 0 false alarms, every bar is reached" in printed


def test_a_missed_bar_is_exit_code_1_and_said(capsys, nothing_is_put_in: str) -> None:
    assert not CATALOGUE[nothing_is_put_in].hard
    assert command.score(seeds=1, clean=0, code=(nothing_is_put_in,)) == 1
    printed = capsys.readouterr().out
    assert "| NUM06 | 1 | not seen 1 | - |" in printed
    assert "1 runs, 0 false alarms, below the bar: soft in time, right layer, right cause" in printed


def test_json_of_a_missed_bar_is_whole_and_exit_code_1(capsys, nothing_is_put_in: str) -> None:
    assert command.score(seeds=1, clean=0, code=(nothing_is_put_in,), json=True) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["soft_seen_within_steps"], found["right_cause"], found["false_alarms"]) == (0.0, 0.0, 0)
    assert found["matrix"] == {"NUM06": {"not seen": 1}}
    assert [one["code"] for one in found["wrong"]] == ["NUM06"]


def test_output_writes_the_matrix_as_markdown_and_says_where(capsys, tmp_path: Path) -> None:
    file = tmp_path / "matrix.md"
    file.write_text("of yesterday")
    assert command.score(seeds=1, clean=0, code=("NUM06",), output=file) == 0
    written = file.read_text()
    title, _, tables = written.partition("| what | of runs | fraction |")
    assert title.startswith("# The scoreboard, in numbers") and "1 runs in 0 minutes on" in title and "torch" in title
    assert "| NUM06 | 1 | NUM06 1 | 0 |" in written
    printed = capsys.readouterr().out
    assert tables in printed
    assert str(file) in printed.splitlines()[-1]


def test_every_fault_runs_if_none_is_named_and_each_named_one_once(capsys, monkeypatch) -> None:
    ran: list[tuple[str | None, int]] = []

    def note(_, seed: int, injection=None) -> Case:
        ran.append((injection and injection.code, seed))
        return Case(ran[-1][0], seed, None, None, True)

    monkeypatch.setattr(scoreboard, "run", note)
    command.score(seeds=2, clean=3, json=True)
    assert ran == [*((code, seed) for code in sorted(INJECTIONS) for seed in (0, 1)), (None, 0), (None, 1), (None, 2)]
    ran.clear()
    command.score(seeds=1, clean=0, code=("wgt02", "SEM01"), json=True)
    assert ran == [("WGT02", 0), ("SEM01", 0)]


@pytest.mark.parametrize("code", ["SEM99", "", "WGT"])
def test_an_unknown_code_is_refused_before_anything_runs(monkeypatch, code: str) -> None:
    monkeypatch.setattr(scoreboard, "run", lambda *_: pytest.fail("nothing may run"))
    with pytest.raises(InputError, match="no such one"):
        command.score(code=("NUM06", code))


@pytest.mark.parametrize(("seeds", "clean"), [(-1, 5), (5, -3), (0, 0)])
def test_no_runs_reach_no_bar(monkeypatch, seeds: int, clean: int) -> None:
    monkeypatch.setattr(scoreboard, "run", lambda *_: pytest.fail("nothing may run"))
    with pytest.raises(InputError, match="at least one"):
        command.score(seeds=seeds, clean=clean, code=("NUM06",))


# -- as a process


def test_an_unknown_code_is_one_clear_message_and_exit_code_2(lockstep) -> None:
    done = lockstep("faults", "score", "--code", "XXX01", "--seeds", 1)
    assert (done.returncode, done.stdout) == (2, "")
    said = done.stderr.replace("\n", " ")
    assert "XXX01" in said and "`lockstep faults` lists them" in said
    assert "Traceback" not in said


def test_json_is_alone_on_stdout(lockstep, tmp_path: Path) -> None:
    done = lockstep("faults", "score", "--code", "num06", "--seeds", 1, "--clean", 0, "--json", "--output", "m.md")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["faults"], found["faulty_runs"], found["clean_runs"]) == (1, 1, 0)
    assert found["matrix"] == {"NUM06": {"NUM06": 1}}
    assert "| NUM06 |" in (tmp_path / "m.md").read_text()


@pytest.mark.parametrize(
    "arguments",
    [("--seeds", "many"), ("--clean", "a,b"), ("--cod", "SEM01")],
)
def test_a_mistake_in_typing_is_exit_code_2(lockstep, arguments: tuple[str, ...]) -> None:
    done = lockstep("faults", "score", *arguments)
    assert done.returncode == 2
    assert arguments[0] in done.stderr and "Traceback" not in done.stderr
