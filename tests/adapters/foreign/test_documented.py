"""docs/auditor.md says of formats, probes, settings and metrics what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lockstep.adapters.foreign.detection import FORMATS, read
from lockstep.adapters.foreign.permission import KINDS
from lockstep.cli.checkup import WORST
from lockstep.parity.probes import CHEAP, DEEP
from lockstep.parity.probes.objective import NAMES

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs/auditor.md").read_text(encoding="utf-8")
SHORT = {"given a reference": "reference"}


def tables(heading: str) -> list[list[list[str]]]:
    """The tables below a heading of the page: rows of cells, without the heads."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"(?:^\|.*\|\n)+", section, re.MULTILINE)
    return [[row.strip("| ").split(" | ") for row in block.splitlines()[2:]] for block in blocks]


def names(cells: list[list[str]]) -> set[str]:
    """What stands between backticks in the first column."""
    return {name for row in cells for name in re.findall(r"`(.*?)`", row[0])}


@pytest.mark.parametrize(("at", "probes"), [(0, CHEAP), (1, DEEP)], ids=["cheap", "deep"])
def test_every_probe_is_listed_in_its_order_with_its_own_words(at: int, probes) -> None:
    told = [(name, (probe.__doc__ or "").strip().splitlines()[0]) for name, probe in probes.items()]
    assert [tuple(row) for row in tables("The order of questions")[at]] == told


def test_every_format_is_listed() -> None:
    assert tables("Foreign runs")[0] == [[fmt.name, fmt.what] for fmt in FORMATS]


def test_what_each_format_allows_is_what_its_files_allow(good, tmp_path: Path) -> None:
    table = tables("Foreign runs")[1]
    assert f"| format | {' | '.join(KINDS)} |" in PAGE
    assert [row[0] for row in table] == [fmt.name for fmt in FORMATS]
    for name, *answers in table:
        allows = read(good.run(name, tmp_path / name.replace(" ", "_"))).allows
        assert answers == [SHORT.get(allows[kind].answer, allows[kind].answer) for kind in KINDS], name


def test_every_status_is_explained() -> None:
    assert names(tables("Verdicts")[0]) == {*WORST, "unjudged"}


def test_settings_that_code_reads_or_states_are_explained() -> None:
    known = names(tables("What a side says of itself")[0])
    read_by = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "lockstep/parity").rglob("*.py"))
    stated = (ROOT / "lockstep/harness/laboratory.py").read_text(encoding="utf-8").partition("settings = {")[2]
    used = set(re.findall(r'settings\.get\("(\w+)"\)', read_by))
    used |= set(re.findall(r'^\s+"(\w+)":', stated.partition("}")[0], re.MULTILINE))
    used |= {"logprobs_mode", "head_dtype"}  # adapters/foreign/own.py
    assert len(used) > 5
    assert used <= known, f"docs/auditor.md says nothing of {sorted(used - known)}"


def test_metrics_that_are_computed_again_are_explained() -> None:
    assert names(tables("Metrics that are computed again")[0]) == set(NAMES)
