"""Values of JSON out of a file, one at a time: lines, or one document; plain or gzip.

In: a path. Out: `Found` values with their place, for messages. A last line that is cut off becomes a gap and the rest
is used; damage before it is an error that names the line. A line or a document is held whole, a file never is.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import orjson

from lockstep.adapters.foreign.gaps import Gaps
from lockstep.errors import InputError, message

MAX_BYTES = 1 << 28
"""Bytes of one line, or of a document that is not lines, after unpacking."""

LOOKED = 8
"""Values that are looked at to tell what a file is: the first may be a request that failed."""

GZIP, SNIFFED = b"\x1f\x8b", 256
_JSON = re.compile(rb"""\s*(\{\s*("|\}|$)|\[\s*([\[{"\]0-9tfnNI-]|$))""")
"""How an object or a list begins; a chat template begins with a brace, too."""


@dataclass(frozen=True, slots=True)
class Found:
    """A value of JSON, and where it stood: ``runs/3.jsonl (line 7)``."""

    place: str
    value: Any


def values(path: Path, gaps: Gaps) -> Iterator[Found]:
    """Every value of a file: of each line, or of one document, whose items are values if it is a list.

    Raises `InputError` for a file that cannot be read, that is damaged, or whose lines are too long.
    """
    with _opened(path) as file:
        number, first = next((pair for pair in _lines(path, file, gaps) if pair[1].strip()), (0, b""))
        if not first:
            return
        try:
            yield Found(f"{path} (line {number})", parse(first))
        except ValueError:
            yield from _document(path, first + _rest(path, file, gaps))
            return
        for at, line in _lines(path, file, gaps, number):
            if not line.strip():
                continue  # verl writes one where a step had no samples
            try:
                yield Found(f"{path} (line {at})", parse(line))
            except ValueError as cause:
                if line.endswith(b"\n"):
                    raise _damaged(f"{path} (line {at})", cause) from cause
                gaps.add(
                    f"{path} (line {at}): the last line is cut off after {len(line)} bytes, it is left out", damage=True
                )


def first_values(path: Path) -> Iterator[Any]:
    """The first values of a file, for a look at what it is. Raises `InputError` as `values` does."""
    return (found.value for found in islice(values(path, Gaps()), LOOKED))


def kind_of(path: Path) -> Literal["Parquet", "JSON", "empty", "neither JSON nor Parquet"]:
    """What the first bytes say, unpacked. Raises `InputError`."""
    with _opened(path) as file:
        start = b""
        with suppress(EOFError):  # packed, and cut off before the first byte
            start = file.read(SNIFFED)
    if start.startswith(b"PAR1"):
        return "Parquet"
    if _JSON.match(start):
        return "JSON"
    return "neither JSON nor Parquet" if start else "empty"


def parse(data: bytes) -> Any:
    """One value. NaN, Infinity and lone surrogates are read as Python writes them. Raises `ValueError`."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as cause:
        try:
            return json.loads(data.decode("utf-8"))
        except (ValueError, RecursionError):
            raise cause from None


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with readable(path), path.open("rb") as file:
        packed = file.read(2) == GZIP
        file.seek(0)
        if not packed:
            yield file
            return
        with gzip.open(file) as unpacked:
            yield cast("BinaryIO", unpacked)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What the file system and the unpacking say, as an `InputError` about `path`."""
    try:
        yield
    except (OSError, zlib.error) as cause:
        got = cause.strerror or cause if isinstance(cause, OSError) else cause
        rule, do = "must be a file that can be read", "Give the file or directory that the run wrote, undamaged"
        raise InputError(message(str(path), rule, got=got, expected="a readable file", do=do)) from cause


def _lines(path: Path, file: BinaryIO, gaps: Gaps, number: int = 0) -> Iterator[tuple[int, bytes]]:
    """(number, line with its newline) of the rest of a file, of which `number` lines have been read."""
    while True:
        number += 1
        try:
            line = file.readline(MAX_BYTES + 1)
        except EOFError:
            gaps.add(f"{path} (line {number}): the packed file is cut off here, what is before it is used", damage=True)
            return
        if not line:
            return
        if len(line) > MAX_BYTES:
            raise _too_long(f"{path} (line {number})")
        yield number, line


def _rest(path: Path, file: BinaryIO, gaps: Gaps) -> bytes:
    try:
        rest = file.read(MAX_BYTES + 1)
    except EOFError:
        gaps.add(f"{path}: the packed file is cut off", damage=True)
        return b""
    if len(rest) > MAX_BYTES:
        raise _too_long(str(path))
    return rest


def _document(path: Path, data: bytes) -> Iterator[Found]:
    try:
        value = parse(data)
    except ValueError as cause:
        raise _damaged(f"{path} (line {getattr(cause, 'lineno', 1)})", cause) from cause
    if not isinstance(value, list):
        yield Found(str(path), value)
        return
    for number, item in enumerate(value, 1):
        yield Found(f"{path} (item {number})", item)


def _damaged(place: str, cause: ValueError) -> InputError:
    rule, do = "every line, or the file as a whole, is JSON", "Mend the line, or cut the file before it"
    return InputError(message(place, rule, got=cause, expected="JSON", do=do))


def _too_long(place: str) -> InputError:
    rule, do = "a line, or a file that is not lines, is read whole", "Write one sample a line (JSONL)"
    return InputError(message(place, rule, got=f"more than {MAX_BYTES} bytes", expected="fewer", do=do))
