"""Rows of a .jsonl or .parquet file, each knowing where it stands.

In: a path. Out: rows; whatever is wrong with the file is an `InputError` that names the file and the line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from lockstep.errors import InputError, message

SUFFIXES = (".jsonl", ".parquet")


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its file as the user would name it, its line (JSONL) or row (Parquet) from 1, and its columns."""

    file: str
    number: int
    columns: dict[str, Any]

    @property
    def place(self) -> str:
        """How an error names the row."""
        return f"{self.file}, {'row' if self.file.lower().endswith('.parquet') else 'line'} {self.number}"

    def wrong(self, column: str, rule: str, got: object, expected: str) -> InputError:
        """The error for a value of this row; a long value is shortened."""
        shown = repr(got)
        shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
        return InputError(
            message(
                f"task file ({self.place}, column {column})", rule, got=shown, expected=expected, do="Mend this row"
            )
        )


def read(path: Path, name: str) -> list[Row]:
    """All rows of the file at `path`, which errors call `name`. Blank lines of a JSONL file are no rows."""
    rows = _parquet(path, name) if path.suffix.lower() == ".parquet" else _jsonl(path, name)
    return list(rows)


def _jsonl(path: Path, name: str) -> Iterator[Row]:
    try:
        with path.open("rb") as handle:
            for number, raw in enumerate(handle, 1):
                line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
                if line.strip():
                    yield Row(name, number, _object(line, name, number))
    except OSError as cause:
        raise _unreadable(name, cause) from None


def _object(line: bytes, name: str, number: int) -> dict[str, Any]:
    """One line as an object. orjson refuses NaN, lone surrogates and bottomless nesting, where `json` would not."""
    try:
        value = orjson.loads(line.rstrip())
    except orjson.JSONDecodeError as cause:
        value, got = None, f"{cause.msg} at column {cause.colno}"
    else:
        got = type(value).__name__
    if not isinstance(value, dict):
        raise InputError(
            message(
                f"task file ({name}, line {number})",
                "each line is one JSON object",
                got=got,
                expected='for example {"prompt": "2 + 2 =", "answer": "4"}',
                do="Mend this line",
            )
        )
    return value


def _parquet(path: Path, name: str) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for columns in batch.to_pylist():
                    number += 1
                    yield Row(name, number, columns)
    except (OSError, pa.ArrowException, ValueError, OverflowError) as cause:
        raise _unreadable(name, cause, f" after row {number}" if number else "") from None


def _unreadable(name: str, cause: Exception, where: str = "") -> InputError:
    return InputError(
        message(
            f"task file ({name})",
            f"the file must be readable{where}",
            got=" ".join(str(cause).split()),
            expected=f"a {' or '.join(SUFFIXES)} file",
            do="Give a path that can be read",
        )
    )
