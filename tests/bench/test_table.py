from __future__ import annotations

import re
from dataclasses import replace

import pytest

from bench import result, table
from bench.result import Comparison, Result
from lockstep.errors import InputError

ONE = Comparison("rollouts", "vLLM", "tokens/s", 1234.5, 600.0, 2.057, 1.98, 2.1, 2.0)


def write(folder, row: str, *found: Comparison) -> None:
    Result(row, {}, {}, found, {}).write(folder)


def test_the_readme_says_what_the_results_say():
    page = table.README.read_text(encoding="utf-8")
    assert table.within(page, table.table()) == page, "run `make bench-table`"


def test_every_result_that_is_kept_can_be_read_and_names_its_row():
    for file in sorted(result.RESULTS.glob("*.json")):
        tree = result.read(file)
        assert tree["row"] == file.stem
        assert not re.search(r"/(tmp|home|root)/", file.read_text(encoding="utf-8")), "no place of one machine"


def test_a_line_for_each_comparison_in_order(tmp_path):
    write(tmp_path, "decode1", replace(ONE, what="decode", peer="llama.cpp", ours=70.0, theirs=65.4321, bar=None))
    write(tmp_path, "rollout", ONE, replace(ONE, peer="transformers", ratio=12.34))
    write(tmp_path, "another", replace(ONE, what="another"))
    lines = table.table(tmp_path).splitlines()
    assert lines[:2] == list(table.HEAD)
    assert lines[2] == "| rollouts | vLLM | 1,234 tokens/s | 600 tokens/s | **2.06x** (1.98 to 2.10) | >= 2x |"
    assert "**12.3x**" in lines[3]
    assert lines[4] == "| decode | llama.cpp | 70 tokens/s | 65.4 tokens/s | **2.06x** (1.98 to 2.10) |  |"
    assert lines[5].startswith("| another")
    assert lines[6] == "" and lines[7].startswith("Measured on ") and len(lines) == 8


def test_what_was_not_reached_is_a_bound(tmp_path):
    write(tmp_path, "learn", replace(ONE, unit="s", ours=20.0, theirs=None))
    assert "| 20 s | not reached | > **2.06x**" in table.table(tmp_path)


def test_without_results_there_is_no_table(tmp_path):
    assert table.table(tmp_path) == ""
    page = f"a\n{table.BEGIN}\nold\n{table.END}\nb\n"
    assert table.within(page, "") == f"a\n{table.BEGIN}\n{table.END}\nb\n"


def test_only_the_place_between_the_markers_changes(tmp_path):
    write(tmp_path, "rollout", ONE)
    page = tmp_path / "README.md"
    page.write_text(f"before\n{table.BEGIN}\n{table.END}\nafter\n")
    table.rewrite(page, tmp_path)
    once = page.read_text()
    assert once.startswith(f"before\n{table.BEGIN}\n| what") and once.endswith(f"{table.END}\nafter\n")
    table.rewrite(page, tmp_path)
    assert page.read_text() == once


@pytest.mark.parametrize("page", ["", table.BEGIN, table.END, f"{table.END} {table.BEGIN}"])
def test_a_page_without_markers_is_refused(page):
    with pytest.raises(InputError, match="markers"):
        table.within(page, "x")


def test_two_machines_are_told_apart(tmp_path):
    import orjson

    write(tmp_path, "rollout", ONE)
    write(tmp_path, "train", ONE)
    file = tmp_path / "train.json"
    tree = orjson.loads(file.read_bytes())
    tree["machine"] |= {"cpu": "Another", "cores": 64, "memory_gib": None}
    file.write_bytes(orjson.dumps(tree))
    text = table.table(tmp_path)
    assert "Measured on 64 cores of Another, " in text and "(rollout)" in text and "(train)" in text
