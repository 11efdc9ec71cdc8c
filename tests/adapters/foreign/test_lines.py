"""Values of JSON, streamed: what is whole is used, what is cut off is said, what is damaged is refused by its place."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.adapters.foreign import lines
from lockstep.adapters.foreign.gaps import SHOWN, Gaps
from lockstep.adapters.foreign.lines import first_values, kind_of, parse, values
from lockstep.errors import InputError

GOOD = b'{"a": 1}\n{"a": 2}\n{"a": 3}\n'
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def read(path: Path) -> tuple[list[object], tuple[str, ...]]:
    gaps = Gaps()
    return [found.value for found in values(path, gaps)], gaps.texts


def written(tmp_path: Path, data: bytes) -> Path:
    file = tmp_path / "file"
    file.write_bytes(data)
    return file


def test_lines_are_values_with_their_places(tmp_path: Path):
    file = written(tmp_path, GOOD)
    found = list(values(file, Gaps()))
    assert [f.value["a"] for f in found] == [1, 2, 3]
    assert [f.place for f in found] == [f"{file} (line {n})" for n in (1, 2, 3)]


def test_packed_lines_are_told_by_content(tmp_path: Path):
    file = written(tmp_path, gzip.compress(GOOD))
    assert read(file) == ([{"a": 1}, {"a": 2}, {"a": 3}], ())
    assert kind_of(file) == "JSON"


def test_blank_lines_are_nothing(tmp_path: Path):
    assert read(written(tmp_path, b"\n" + GOOD.replace(b"\n", b"\n\n")))[0] == [{"a": 1}, {"a": 2}, {"a": 3}]
    assert read(written(tmp_path, b"")) == ([], ())
    assert read(written(tmp_path, b"\n\n")) == ([], ())


@pytest.mark.parametrize("size", range(len(b'{"a": 1}\n{"a": 2}\n') + 1, len(GOOD) - 1))
def test_a_last_line_that_is_cut_off_is_said_and_left_out(tmp_path: Path, size: int):
    file = written(tmp_path, GOOD[:size])
    found, gaps = read(file)
    assert found == [{"a": 1}, {"a": 2}]
    assert gaps == (f"{file} (line 3): the last line is cut off after {size - 18} bytes, it is left out",)


def test_a_last_line_without_its_newline_is_whole(tmp_path: Path):
    assert read(written(tmp_path, GOOD[:-1])) == ([{"a": 1}, {"a": 2}, {"a": 3}], ())


def test_damage_in_the_middle_names_the_line(tmp_path: Path):
    file = written(tmp_path, GOOD.replace(b'"a": 2', b'"a" 2'))
    with pytest.raises(InputError, match=r"file \(line 2\): every line, or the file as a whole, is JSON - got "):
        read(file)


def test_a_damaged_last_line_with_its_newline_is_not_cut_off(tmp_path: Path):
    with pytest.raises(InputError, match=r"\(line 3\)"):
        read(written(tmp_path, GOOD.replace(b"3}", b"3")))


def test_lines_before_the_damage_have_been_given(tmp_path: Path):
    given_before = []
    with pytest.raises(InputError):
        given_before.extend(found.value for found in values(written(tmp_path, GOOD + b"x\n"), Gaps()))
    stream = values(written(tmp_path, GOOD + b"x\n"), Gaps())
    assert [next(stream).value["a"] for _ in range(3)] == [1, 2, 3]


def test_a_packed_file_that_is_cut_off_gives_what_is_whole(tmp_path: Path):
    many = b"".join(b'{"a": %d, "b": "%s"}\n' % (i, bytes(f"{i * 7919:x}", "ascii") * 9) for i in range(2000))
    packed = gzip.compress(many)
    file = written(tmp_path, packed[: len(packed) // 2])
    found, gaps = read(file)
    assert 100 < len(found) < 2000
    assert [value["a"] for value in found] == list(range(len(found)))  # type: ignore[index]
    assert gaps == (f"{file} (line {len(found) + 1}): the packed file is cut off here, what is before it is used",)


def test_a_packed_file_that_is_damaged(tmp_path: Path):
    packed = bytearray(gzip.compress(GOOD))
    packed[12] ^= 0xFF
    with pytest.raises(InputError, match="must be a file that can be read"):
        read(written(tmp_path, bytes(packed)))


def test_numbers_as_python_writes_them(tmp_path: Path):
    found, _ = read(written(tmp_path, b'{"a": [NaN, Infinity, -Infinity, 1e400]}\n'))
    numbers = found[0]["a"]  # type: ignore[index]
    assert math.isnan(numbers[0])
    assert numbers[1:] == [math.inf, -math.inf, math.inf]


def test_lone_surrogates_as_python_writes_them():
    assert parse(json.dumps({"a": "\ud800"}).encode()) == {"a": "\ud800"}


@pytest.mark.parametrize(
    "data", [b"[" * 5000, b"[" * 5000 + b"NaN", b"\xff\xfe{", b'{"a": 1', b"NaNN", b"1" * 5000 + b"x", b"\x00\x00"]
)
def test_what_is_no_json(data: bytes):
    with pytest.raises(ValueError):
        parse(data)


def test_a_document_is_its_items(tmp_path: Path):
    file = written(tmp_path, json.dumps([{"a": 1}, {"a": 2}], indent=1).encode())
    found = list(values(file, Gaps()))
    assert [f.value for f in found] == [{"a": 1}, {"a": 2}]
    assert [f.place for f in found] == [f"{file} (item 1)", f"{file} (item 2)"]


def test_a_document_is_one_value(tmp_path: Path):
    file = written(tmp_path, b"\n" + json.dumps({"a": {"b": 1}}, indent=2).encode() + b"\n")
    assert read(file) == ([{"a": {"b": 1}}], ())


def test_a_list_on_one_line_is_a_line(tmp_path: Path):
    """PipelineRL's lines are lists; a reader says what is in them."""
    assert read(written(tmp_path, b"[1, 2]\n[3]\n"))[0] == [[1, 2], [3]]


def test_a_damaged_document_names_the_line(tmp_path: Path):
    with pytest.raises(InputError, match=r"\(line 3\)"):
        read(written(tmp_path, b'{\n"a": 1,\n"b": x\n}\n'))


@pytest.mark.parametrize("data", [GOOD, json.dumps({"a": list(range(9))}, indent=1).encode()])
def test_a_line_or_a_document_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes):
    monkeypatch.setattr(lines, "MAX_BYTES", 7)
    with pytest.raises(InputError, match="is read whole - got more than 7 bytes, expected fewer"):
        read(written(tmp_path, data))


def test_a_file_is_never_held_whole(tmp_path: Path):
    """Reading on demand: a damaged line that nobody has asked for yet hurts nobody."""
    file = written(tmp_path, GOOD * 5000 + b"x\n")
    assert len(list(first_values(file))) == lines.LOOKED


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"PAR1....", "Parquet"),
        (b" \n\t [1]", "JSON"),
        (b'{"a": 1}', "JSON"),
        (b"", "empty"),
        (b"a = 1", "neither JSON nor Parquet"),
        (b"PA", "neither JSON nor Parquet"),
        (b"{% if messages %}", "neither JSON nor Parquet"),
        (b"{{ bos_token }}", "neither JSON nor Parquet"),
        (b"[section]", "neither JSON nor Parquet"),
        (b"{\n" + b" " * 400 + b'"a": 1}', "JSON"),
        (b"[-0.5]", "JSON"),
        (b"[NaN]", "JSON"),
        (b"{}", "JSON"),
        (gzip.compress(b"abc", mtime=0), "neither JSON nor Parquet"),
        (gzip.compress(b"{}", mtime=0)[:9], "empty"),
    ],
)
def test_kinds(tmp_path: Path, data: bytes, kind: str):
    assert kind_of(written(tmp_path, data)) == kind


def test_no_file(tmp_path: Path):
    with pytest.raises(InputError, match="must be a file that can be read - got No such file or directory"):
        read(tmp_path / "nothing")
    with pytest.raises(InputError, match="Is a directory"):
        read(tmp_path)


def test_gaps_are_counted_and_the_first_are_shown():
    gaps = Gaps()
    for number in range(SHOWN + 3):
        gaps.add(f"line {number}")
    assert len(gaps.texts) == SHOWN + 1
    assert gaps.texts[-1] == "and 3 more"
    gaps.clear()
    assert gaps.texts == ()


@given(rows=st.lists(JSON, max_size=5))
def test_what_orjson_writes_is_read(tmp_path_factory: pytest.TempPathFactory, rows: list[object]):
    file = tmp_path_factory.mktemp("lines") / "f"
    file.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    assert read(file) == (rows, ())


@given(data=st.binary(max_size=200))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes):
    file = tmp_path_factory.mktemp("lines") / "f"
    file.write_bytes(data)
    for packed in (data, gzip.compress(data), b"\x1f\x8b" + data):
        file.write_bytes(packed)
        kind = None
        try:
            kind = kind_of(file)
            read(file)
        except InputError as refused:
            assert str(file) in str(refused)
        assert kind in (None, "JSON", "Parquet", "empty", "neither JSON nor Parquet")
