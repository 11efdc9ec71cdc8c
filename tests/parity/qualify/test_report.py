"""All forms of a report are written, or none."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import orjson
import pytest

from lockstep.errors import InputError, StorageError
from lockstep.parity.qualify.difference import Difference
from lockstep.parity.qualify.qualification import Qualification
from lockstep.parity.qualify.report import NAMES, json, write
from lockstep.parity.qualify.restore import restore
from lockstep.parity.qualify.tables import figure, tables


def qualified(plant, **kwargs) -> Qualification:
    trials = plant(4, ["s01", "s03"])
    return Qualification(restore(trials.differences, trials.workload), **kwargs)


def test_every_form_says_the_same_verdict(plant, tmp_path):
    one = qualified(plant)
    paths = write(one, tmp_path / "new")
    assert {kind: path.name for kind, path in paths.items()} == NAMES
    assert orjson.loads(paths["json"].read_bytes())["verdict"] == one.verdict
    assert one.verdict in paths["html"].read_text()
    assert one.verdict in paths["markdown"].read_text().replace("`", "")
    assert ET.parse(paths["junit"]).find(".//failure").get("message") == one.verdict


def test_the_same_qualification_gives_the_same_bytes(plant, tmp_path):
    first, second = (write(qualified(plant), tmp_path / name) for name in ("a", "b"))
    assert [path.read_bytes() for path in first.values()] == [path.read_bytes() for path in second.values()]


def test_nothing_is_written_of_what_cannot_be_recorded(plant, tmp_path):
    trials = plant(1, ["s00"])
    one = Qualification(restore([Difference("s00", {1}, 2)], trials.workload))
    with pytest.raises(InputError, match="values must be plain"):
        write(one, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_an_error_of_storage(plant, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        write(qualified(plant), tmp_path / "file")


def test_json_ends_with_a_newline(plant):
    assert json(qualified(plant)).endswith(b"}\n")


class TestTables:
    def test_rows_are_as_wide_as_their_heads(self, plant):
        for table in tables(qualified(plant, facts={"a": "b"}, figures={"c": None})):
            assert table.rows
            assert {len(row) for row in table.rows} == {len(table.columns)}
            assert all(place < len(table.columns) for place in table.code)

    def test_cells_are_printable_lines(self, plant, hostile):
        facts = dict(zip(hostile, hostile, strict=True))
        for table in tables(qualified(plant, facts=facts)):
            assert all(cell.isprintable() for row in table.rows for cell in row)

    def test_trials_from_an_earlier_log_are_marked(self, plant):
        first = qualified(plant).restoration
        trials = plant(4, ["s01", "s03"])
        again = restore(trials.differences, trials.workload, known=first.records[:2])
        (table,) = [table for table in tables(Qualification(again)) if table.title == "Trials"]
        assert [row[1].endswith("(earlier log)") for row in table.rows[:3]] == [True, True, False]

    @pytest.mark.parametrize(
        ("value", "text"),
        [(None, "\N{EN DASH}"), (0.123456789, "0.123457"), (3, "3"), (True, "true"), ("a b", "a b"), ("", '""')],
    )
    def test_figures_are_told_shortly(self, value, text):
        assert figure(value) == text
