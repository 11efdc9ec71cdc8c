"""Lines of JSON that hide nothing: how metrics are written and read back.

In: mappings with numpy or torch numbers, NaN and all. Out: one line of JSON each, and the same mapping again. A number
that is not finite is the string "NaN", "Infinity" or "-Infinity" (JSON has no such number, and null would hide it).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from lockstep.errors import StorageError, message
from lockstep.trace.durable import storage, whole_lines

NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def plain(value: Any) -> Any:
    """`value` as JSON can say it: dataclasses and mappings as objects, arrays as lists, what else there is as text."""
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if hasattr(value, "items"):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy arrays and scalars, torch tensors, without importing either
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def encode_line(metrics: Mapping[str, float | None]) -> bytes:
    """One line of JSON, newline included."""
    return orjson.dumps(plain(metrics)) + b"\n"


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file, none if it is missing; a last line without a newline is still being written."""
    if not file.exists():
        return []
    with storage(file):
        lines = whole_lines(file.read_bytes()).splitlines()
    return [_decode(file, number, line) for number, line in enumerate(lines, 1)]


def _decode(file: Path, number: int, line: bytes) -> dict[str, Any]:
    cause = None
    try:
        tree = orjson.loads(line)
    except orjson.JSONDecodeError as found:
        tree, cause = None, found
    if not isinstance(tree, dict):
        rule, do = "every line is an object of JSON", "Mend the line, or cut the file before it"
        got = cause or line.decode()[:40]
        raise StorageError(message(f"{file} (line {number})", rule, got=got, expected="an object", do=do)) from cause
    return {key: NON_FINITE.get(value, value) if isinstance(value, str) else value for key, value in tree.items()}
