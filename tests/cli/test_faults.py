"""`lockstep faults` as a user meets it: a list in the order of looking, one page of it, JSON alone, typing errors."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from lockstep.cli import faults
from lockstep.parity.catalogue import CATALOGUE, COMMON, SECTIONS
from lockstep.parity.catalogue.citation import citations

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "numpy", "pyarrow", "matplotlib", "tokenizers", "safetensors", "transformers")
CODES = pytest.mark.parametrize("code", CATALOGUE)


@pytest.fixture
def shown(capsys, monkeypatch):
    """What a command prints on a terminal of so many columns."""

    def run(columns: int, command, *arguments) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.delenv("FORCE_COLOR", raising=False)
        assert command(*arguments) == 0
        return capsys.readouterr().out

    return run


def words(text: str) -> str:
    """Words in order, without what only sets them off: borders, marks of code, line breaks."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text.replace("`", "")).split())


# -- the list


def test_the_list_is_in_the_order_of_looking(shown) -> None:
    printed = shown(100, faults.list_faults)
    assert re.findall(r"^  ([A-Z]{3}\d\d)\b", printed, re.MULTILINE) == list(CATALOGUE)
    heads = re.findall(r"^([a-z]+)  ([A-Z].*?)\s*$", printed, re.MULTILINE)
    assert heads[: len(COMMON)] == [(layer.value, common) for layer, common in COMMON.items()]


def test_each_row_has_title_and_urgency(shown) -> None:
    printed = shown(100, faults.list_faults)
    for code, fault in CATALOGUE.items():
        mark = "●" if fault.hard else "○"
        assert re.search(rf"^  {code}  {mark}  {re.escape(fault.title)}\s*$", printed, re.MULTILINE), code
    assert "49 faults; 37 (●) must be seen before the first step" in printed


def test_settings_are_listed_where_there_is_room(shown) -> None:
    narrow, wide = shown(faults.ROOMY - 1, faults.list_faults), shown(faults.ROOMY, faults.list_faults)
    assert "processed_logprobs" not in narrow
    assert "processed_logprobs" in wide
    assert max(map(len, wide.splitlines())) <= faults.ROOMY
    assert max(len(line) for line in shown(400, faults.list_faults).splitlines()) <= faults.WIDE


@pytest.mark.parametrize("columns", [40, 80, faults.ROOMY, 200])
def test_nothing_in_the_list_is_cut_off(shown, columns: int) -> None:
    printed = shown(columns, faults.list_faults)
    assert "…" not in printed
    assert max(map(len, printed.splitlines())) <= columns


# -- one page


@CODES
def test_a_page_says_all_that_the_catalogue_says(shown, code: str) -> None:
    fault, printed = CATALOGUE[code], words(shown(100, faults.show, code))
    for field, heading in SECTIONS.items():
        assert f"{heading} {words(getattr(fault, field))}" in printed
    assert words(f"What to change {fault.setting}") in printed
    assert f"{code} {fault.title} {fault.layer.value}" in printed
    assert ("before the first step" in printed) == fault.hard
    for citation in citations(fault.source):
        assert words(f"{citation.text} {citation.url or ''}") in printed


@pytest.mark.parametrize("columns", [40, 80, 300])
def test_a_page_fits_its_terminal_and_stays_readable(shown, columns: int) -> None:
    printed = shown(columns, faults.show, "WGT04")
    assert "…" not in printed
    assert max(map(len, printed.splitlines())) <= min(columns, faults.READABLE)


def test_code_is_set_off_by_colour() -> None:
    text = faults.styled("set `a=1` or `b`")
    assert text.plain == "set a=1 or b"
    assert [text.plain[span.start : span.end] for span in text.spans if span.style == "cyan"] == ["a=1", "b"]


def test_addresses_can_be_followed(capsys, monkeypatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert faults.show("SEM01") == 0
    assert "\x1b]8;" in capsys.readouterr().out, "a terminal's link"


# -- as a process


def test_a_code_alone_is_enough_and_capitals_do_not_matter(lockstep) -> None:
    asked = [lockstep("faults", *arguments) for arguments in (("show", "CAC01"), ("show", "cac01"), ("Cac01",))]
    assert [done.returncode for done in asked] == [0, 0, 0]
    assert len({done.stdout for done in asked}) == 1
    assert "cache_salt" in asked[0].stdout


def test_the_list_is_what_comes_without_a_word(lockstep) -> None:
    done = lockstep("faults")
    assert (done.returncode, done.stderr) == (0, "")
    assert all(code in done.stdout for code in CATALOGUE)


def test_json_is_alone_on_stdout_and_whole(lockstep) -> None:
    done = lockstep("faults", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert [fault["code"] for fault in found] == list(CATALOGUE)
    for fault in found:
        kept = asdict(CATALOGUE[fault["code"]])
        sources = [asdict(citation) for citation in citations(kept["source"])]
        assert fault == kept | {"source": sources, "layer": CATALOGUE[fault["code"]].layer.value}
    for arguments in (("show", "num01", "--json"), ("num01", "--json")):
        assert json.loads(lockstep("faults", *arguments).stdout) == next(f for f in found if f["code"] == "NUM01")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("show", "SEM1"), "Did you mean SEM01."),
        (("SEM1",), "Did you mean SEM01."),
        (("show", "CAC9", "--json"), "Did you mean one of CAC01, CAC02, CAC03, CAC04, CAC05."),
        (("show", "nothing like it"), "`lockstep faults` lists them."),
        (("show",), "requires an argument"),
        (("show", "SEM01", "SEM02"), "SEM02"),
        (("--jsno",), "--jsno"),
    ],
)
def test_a_mistake_gets_one_message_and_exit_code_2(lockstep, arguments: tuple[str, ...], says: str) -> None:
    done = lockstep("faults", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


def test_help_names_the_commands(lockstep) -> None:
    done = lockstep("faults", "--help")
    assert done.returncode == 0
    assert re.search(r"\bshow\b", done.stdout) and "--json" in done.stdout
    assert "faults" in lockstep("--help").stdout


@pytest.mark.parametrize("arguments", [["--help"], [], ["show", "SEM01"], ["show", "--help"], ["--json"]])
def test_nothing_heavy_is_loaded(arguments: list[str]) -> None:
    report = (
        "import runpy, sys\n"
        f"sys.argv = ['lockstep', 'faults', *{arguments!r}]\n"
        "try:\n    runpy.run_module('lockstep', run_name='__main__')\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
        f"print('\\nheavy:', *[m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", report], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["heavy:"]
