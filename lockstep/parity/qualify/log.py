"""Trials on disk, one a line as each ends, so that a search that was cut off goes on where it was.

In: records, and the fingerprint of the pair of configurations. Out: a JSONL file; its first line says what it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from lockstep.errors import InputError, message
from lockstep.parity.qualify.difference import shown
from lockstep.parity.qualify.trial import Record
from lockstep.trace.durable import append_line, replace_file, storage, whole_lines

SCHEMA = "lockstep.qualify.log/1"


@dataclass(frozen=True, slots=True)
class Log:
    """An open log. `known` is what it held when it was opened: give it to `restore`, and `add` as `Workload.seen`."""

    path: Path
    known: tuple[Record, ...]

    @classmethod
    def open(cls, path: Path, fingerprint: str) -> Log:
        """Begin a log, or go on with one; a last line that was cut off is dropped.

        `fingerprint` is that of the pair (`difference.fingerprint`), with whatever else the caller holds to matter.
        Raises `InputError` for a file that is no log, is damaged, or is of another pair; `StorageError`.
        """
        header = orjson.dumps({"schema": SCHEMA, "fingerprint": fingerprint}) + b"\n"
        with storage(path):
            data = path.read_bytes() if path.exists() else b""
        whole = whole_lines(data)
        if not whole and header.startswith(data):
            replace_file(path, header)
            return cls(path, ())
        lines = whole.splitlines() or [data]
        _check_header(path, lines[0], fingerprint)
        known = tuple(_record(path, number, line) for number, line in enumerate(lines[1:], start=2))
        if whole != data:
            replace_file(path, whole)
        return cls(path, known)

    def add(self, record: Record) -> None:
        """Append a record, unless it came from a log. Raises `StorageError`."""
        if not record.known:
            append_line(self.path, orjson.dumps(record.plain()) + b"\n")


def _check_header(path: Path, line: bytes, fingerprint: str) -> None:
    try:
        header: Any = orjson.loads(line)
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("schema") != SCHEMA:
        raise _refusal(path, 1, f"{shown(line.decode('utf-8', 'replace'))}", f"the schema {SCHEMA}")
    if header.get("fingerprint") != fingerprint:
        raise InputError(
            message(
                f"log of trials ({path})",
                "its trials must be of the same pair of configurations",
                got=f"a log of {shown(header.get('fingerprint'))}",
                expected=fingerprint,
                do="Give the configurations that the log was begun with, or another path for a new log",
            )
        )


def _record(path: Path, number: int, line: bytes) -> Record:
    try:
        return Record.of(orjson.loads(line))
    except ValueError as cause:
        raise _refusal(path, number, str(cause), "a record of a trial") from cause


def _refusal(path: Path, number: int, got: str, expected: str) -> InputError:
    rule = f"line {number} must be readable"
    do = "Remove the file to begin anew, or mend that line"
    return InputError(message(f"log of trials ({path})", rule, got=got, expected=expected, do=do))
