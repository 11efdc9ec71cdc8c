"""A log takes up a search where it was cut off, wherever that was, and only a search over the same pair."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.errors import InputError, StorageError
from lockstep.parity.qualify.difference import fingerprint
from lockstep.parity.qualify.log import Log
from lockstep.parity.qualify.restore import Workload, restore
from lockstep.parity.qualify.trial import Record, Trial

PAIR = fingerprint({"a": 1}, {"a": 2})
RECORD = Record(frozenset({"a", "b"}), "search", Trial(False, {"mean": 0.1}))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "trials.jsonl"


def lines(path):
    return path.read_bytes().splitlines()


class TestLog:
    def test_begins_with_what_it_is(self, path):
        assert Log.open(path, PAIR).known == ()
        assert len(lines(path)) == 1
        assert PAIR.encode() in lines(path)[0]

    def test_gives_back_what_was_added(self, path):
        records = [Record(None, "baseline", Trial(True)), RECORD, Record(frozenset(), "new", Trial(None))]
        log = Log.open(path, PAIR)
        for record in records:
            log.add(record)
        assert Log.open(path, PAIR).known == tuple(records)
        assert log.known == (), "what was known when it was opened"

    def test_adds_nothing_twice(self, path):
        log = Log.open(path, PAIR)
        log.add(Record(frozenset(), "new", Trial(True), known=True))
        assert Log.open(path, PAIR).known == ()

    def test_is_made_with_its_folder(self, tmp_path):
        path = tmp_path / "new" / "folder" / "log.jsonl"
        Log.open(path, PAIR).add(RECORD)
        assert Log.open(path, PAIR).known == (RECORD,)

    @pytest.mark.parametrize("written", [0, 1, 20, 60])
    def test_a_header_that_was_cut_off_is_written_again(self, path, written):
        Log.open(path, PAIR)
        whole = path.read_bytes()
        path.write_bytes(whole[:written])
        assert Log.open(path, PAIR).known == ()
        assert path.read_bytes() == whole

    @given(st.data())
    def test_a_record_that_was_cut_off_is_dropped_and_the_log_goes_on(self, tmp_path_factory, data):
        path = tmp_path_factory.mktemp("log") / "log.jsonl"
        Log.open(path, PAIR).add(RECORD)
        whole = path.read_bytes()
        Log.open(path, PAIR).add(RECORD)
        both = path.read_bytes()
        path.write_bytes(both[: data.draw(st.integers(len(whole), len(both) - 1))])
        log = Log.open(path, PAIR)
        assert log.known == (RECORD,)
        assert path.read_bytes() == whole
        log.add(Record(None, "baseline", Trial(True)))
        assert [record.purpose for record in Log.open(path, PAIR).known] == ["search", "baseline"]


class TestRefusal:
    def house(self, path, match):
        before = path.read_bytes()
        with pytest.raises(InputError, match=match) as caught:
            Log.open(path, PAIR)
        assert re.match(r"^log of trials \(.+\): .+ - got .+, expected .+\. .+\.$", str(caught.value))
        assert path.read_bytes() == before, "what is refused is left as it is"

    def test_another_pair(self, path):
        Log.open(path, fingerprint({"a": 1}, {"a": 3}))
        self.house(path, "same pair of configurations")

    @pytest.mark.parametrize(
        "data",
        [b"hello", b"hello\n", b"{}\n", b"[]\n", b"\n", b'{"schema": "other/1"}\n', b"\xff\x00\n", b"PK\x03\x04"],
    )
    def test_a_file_that_is_no_log(self, path, data):
        path.write_bytes(data)
        self.house(path, r"line 1 must be readable .+ expected the schema lockstep\.qualify\.log/1")

    @pytest.mark.parametrize("line", [b"{}", b"", b"not json", b'{"kept": 3}', b"\xff"])
    def test_a_damaged_line(self, path, line):
        Log.open(path, PAIR).add(RECORD)
        path.write_bytes(path.read_bytes() + line + b"\n" + path.read_bytes())
        self.house(path, "line 3 must be readable")

    def test_a_folder_in_its_place(self, tmp_path):
        with pytest.raises(StorageError):
            Log.open(tmp_path, PAIR)


def test_a_search_is_replayed_from_its_log(path, plant):
    trials = plant(6, ["s01", "s04"])
    log = Log.open(path, PAIR)
    expected = restore(trials.differences, Workload(trials.trial, trials.baseline, log.add), known=log.known)
    again, rest = Log.open(path, PAIR), plant(6, ["s01", "s04"])
    found = restore(rest.differences, Workload(rest.trial, rest.baseline, again.add), known=again.known)
    assert rest.ran == []
    assert found.members == expected.members
    assert len(lines(path)) == 1 + len(expected.records)
