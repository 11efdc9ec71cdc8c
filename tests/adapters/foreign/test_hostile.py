"""Files of any content: what comes out is observations, or an error of ours. Never a traceback, never a guess."""

from __future__ import annotations

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.adapters.foreign.audit import passive
from lockstep.adapters.foreign.detection import FORMATS, detect, read, survey
from lockstep.errors import LockstepError

JSONL = [fmt.name for fmt in FORMATS if fmt.of_json]
PARQUET = [fmt.name for fmt in FORMATS if fmt.of_parquet]

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def small(good, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of the first file of a good run of each format."""
    found = {}
    for name in good.writers:
        path = good.run(name, tmp_path_factory.mktemp("good") / "run")
        found[name] = survey(path).files[detect(path)][0].read_bytes()
    return found


def looked_at(file: Path, data: bytes) -> int:
    """How many samples are read of a file with these bytes; -1 if it is refused. Nothing else may happen."""
    file.write_bytes(data)
    try:
        run = read(file)
        allows = run.allows
        samples = sum(len(observation.samples) for observation in run.observations())
    except LockstepError as refused:
        assert str(file) in str(refused)
        return -1
    report = passive(run)
    assert report.stopped is None
    assert report.coverage.samples == samples
    assert report.allows.keys() == allows.keys()
    return samples


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to every value within a value."""
    inner = list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree)) if isinstance(tree, list) else []
    return [path] + [way for key, value in inner for way in places(value, (*path, key))]


def put(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with the value at a place replaced."""
    if not path:
        return value
    changed = copy.deepcopy(tree)
    at = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return changed


@pytest.mark.parametrize("name", JSONL)
def test_cut_off_at_every_byte(small: dict[str, bytes], tmp_path: Path, name: str):
    data = small[name]
    whole = looked_at(tmp_path / "f", data)
    first_line = data.index(b"\n") + 1
    counts = [looked_at(tmp_path / "f", data[:size]) for size in range(len(data))]
    assert all(count == -1 for count in counts[: first_line - 1])  # nothing whole is in there
    assert all(0 <= count <= whole for count in counts[first_line - 1 :])
    assert counts[first_line - 1 :] == sorted(counts[first_line - 1 :])
    assert counts[-1] == whole  # only the last newline is missing


@pytest.mark.parametrize("name", JSONL)
def test_packed_and_cut_off_at_every_byte(small: dict[str, bytes], tmp_path: Path, name: str):
    data = gzip.compress(small[name])
    whole = looked_at(tmp_path / "f", data)
    assert whole == looked_at(tmp_path / "f", small[name])
    assert all(looked_at(tmp_path / "f", data[:size]) <= whole for size in range(len(data)))


@pytest.mark.parametrize("name", PARQUET)
def test_parquet_cut_off_at_every_byte(small: dict[str, bytes], tmp_path: Path, name: str):
    """Parquet ends with its table of contents: what is cut off cannot be read at all, and says so."""
    data = small[name]
    assert looked_at(tmp_path / "f", data) > 0
    assert {looked_at(tmp_path / "f", data[:size]) for size in range(len(data))} == {-1}


@pytest.mark.parametrize("name", JSONL)
@given(data=st.data())
def test_any_value_in_any_place(small: dict[str, bytes], tmp_path_factory, name: str, data: st.DataObject):
    lines = [json.loads(line) for line in small[name].splitlines()]
    number = data.draw(st.integers(0, len(lines) - 1))
    place = data.draw(st.sampled_from(places(lines[number])))
    lines[number] = put(lines[number], place, data.draw(JSON))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    looked_at(tmp_path_factory.mktemp("f") / "f", text.encode())


@pytest.mark.parametrize("name", JSONL)
@given(data=st.data())
def test_any_column_missing_or_moved(small: dict[str, bytes], tmp_path_factory, name: str, data: st.DataObject):
    line = json.loads(small[name].splitlines()[0])
    objects = [way for way in places(line) if way and isinstance(way[-1], str)]
    out = data.draw(st.sampled_from(objects))
    changed = put(line, out, None)
    other = data.draw(st.sampled_from(objects))
    value = line
    for key in out:
        value = value[key]
    if other[: len(out)] != out:
        changed = put(changed, other, value)
    looked_at(tmp_path_factory.mktemp("f") / "f", json.dumps(changed).encode() + b"\n")


@pytest.mark.parametrize("name", [*JSONL, *PARQUET])
@given(data=st.data())
def test_any_bytes_overwritten(small: dict[str, bytes], tmp_path_factory, name: str, data: st.DataObject):
    whole = bytearray(small[name])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at] = data.draw(st.integers(0, 255))
    looked_at(tmp_path_factory.mktemp("f") / "f", bytes(whole))


@given(data=st.binary(max_size=300))
@pytest.mark.parametrize("start", [b"", b"{", b"[", b"PAR1", b"\x1f\x8b\x08\x00"])
def test_any_bytes(tmp_path_factory, start: bytes, data: bytes):
    looked_at(tmp_path_factory.mktemp("f") / "f", start + data)


@given(rows=st.lists(JSON, max_size=4))
def test_any_json(tmp_path_factory, rows: list[Any]):
    file = tmp_path_factory.mktemp("f") / "f"
    looked_at(file, "".join(json.dumps(row) + "\n" for row in rows).encode())
    looked_at(file, json.dumps(rows, indent=1).encode())


@pytest.mark.parametrize("name", JSONL)
def test_nesting_without_end(small: dict[str, bytes], tmp_path: Path, name: str):
    deep = b'{"a":' * 3000 + b"1" + b"}" * 3000 + b"\n"
    assert looked_at(tmp_path / "f", small[name] + deep) == -1
