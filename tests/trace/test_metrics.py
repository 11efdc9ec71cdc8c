"""Lines of metrics: nothing is hidden, nothing is invented, damage is named."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lockstep.errors import StorageError
from lockstep.trace.metrics import encode_line, plain, read_lines

values = st.none() | st.integers(-(2**53), 2**53) | st.floats()


@given(metrics=st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), values, max_size=6))
def test_a_line_reads_back_to_the_same_numbers(
    tmp_path_factory: pytest.TempPathFactory, metrics: dict[str, float | None]
) -> None:
    file = tmp_path_factory.mktemp("metrics") / "metrics.jsonl"
    file.write_bytes(encode_line(metrics) * 2)
    for found in read_lines(file):
        assert found.keys() == metrics.keys()
        for key, value in metrics.items():
            same = found[key] == value or (value != value and found[key] != found[key])
            assert same and type(found[key]) is type(value)


def test_a_number_that_is_none_is_said_aloud_and_only_a_missing_one_is_null() -> None:
    line = encode_line({"loss": math.nan, "a": math.inf, "b": -math.inf, "reward": None})
    assert line == b'{"loss":"NaN","a":"Infinity","b":"-Infinity","reward":null}\n'
    json.loads(line, parse_constant=pytest.fail)  # strict JSON: any reader takes it


def test_numbers_of_numpy_and_torch_are_written_exactly() -> None:
    line = encode_line({"a": np.float32(0.1), "b": np.int64(3), "c": torch.tensor(0.5), "d": np.bool_(True)})  # type: ignore[dict-item]
    assert json.loads(line) == {"a": float(np.float32(0.1)), "b": 3, "c": 0.5, "d": True}
    assert plain(np.float32("nan")) == "NaN"


def test_evidence_of_any_shape_becomes_json() -> None:
    @dataclass(frozen=True)
    class Difference:
        token: int
        values: np.ndarray

    found = plain({"first": Difference(3, np.array([1.5, np.nan])), 7: (Path("a"), {1})})
    assert found == {"first": {"token": 3, "values": [1.5, "NaN"]}, "7": ["a", [1]]}


def test_a_line_still_being_written_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert read_lines(file) == []
    file.write_bytes(b'{"step":1}\n{"step":2,"rew')
    assert read_lines(file) == [{"step": 1}]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step":1}\n{"step"\n{"step":3}\n')
    with pytest.raises(StorageError, match=r"metrics\.jsonl \(line 2\): every line is an object of JSON"):
        read_lines(file)


@pytest.mark.parametrize("line", [b"3", b"[1, 2]", b'"text"', b"null", b"true"])
def test_a_line_that_is_no_object_is_damaged_too(tmp_path: Path, line: bytes) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step":1}\n' + line + b'\n{"step":3}\n')
    with pytest.raises(StorageError, match=r"metrics\.jsonl \(line 2\): every line is an object of JSON"):
        read_lines(file)
