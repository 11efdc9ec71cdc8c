"""An object of JSON, read column by column: every type is checked, and what is wrong is named with its place.

In: a value that somebody else's program wrote. Out: texts, numbers and arrays of the types that observations have.
Null, or no such column, is None. In a list of numbers null is NaN: writers put it where a number was not finite.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lockstep.errors import InputError, message

LAST_ID = 2**31 - 1
"""Token ids are int32."""

_KINDS: Mapping[type, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


@dataclass(frozen=True, slots=True)
class Row:
    """`place` names file and line; `within` is where in the line this object stands, for example ``choices[0].``."""

    place: str
    tree: Mapping[str, Any]
    within: str = ""

    @classmethod
    def of(cls, place: str, value: object, within: str = "") -> Row:
        """Raises `InputError` if `value` is no object."""
        if not isinstance(value, dict):
            column = f"column {within.rstrip('.')}" if within else "every line"
            raise _wrong(place, f"{column} is an object of JSON", _kind(value), "an object")
        return cls(place, value, within)

    def wrong(self, column: str, got: object, expected: str) -> InputError:
        """The error about a column."""
        return _wrong(self.place, f"column {self.within}{column} is not as this format has it", got, expected)

    def text(self, column: str) -> str | None:
        """Lone surrogates, which no encoding holds, become `?`."""
        value = self._value(column, (str,), "text")
        return None if value is None else value.encode("utf-8", "replace").decode("utf-8")

    def integer(self, column: str) -> int | None:
        """An integer of at most 63 bits."""
        value = self._value(column, (int,), "an integer")
        if value is not None and not -(2**63) <= value < 2**63:
            raise self.wrong(column, value, "an integer of at most 64 bits")
        return value

    def needed(self, column: str) -> int:
        """An integer that this format always has."""
        value = self.integer(column)
        if value is None:
            raise self.wrong(column, "nothing", "an integer")
        return value

    def number(self, column: str) -> float | None:
        """A number, finite or not."""
        value = self._value(column, (int, float), "a number")
        return None if value is None else _float(value)

    def flag(self, column: str) -> bool | None:
        """True or false."""
        return self._value(column, (bool,), "true or false")

    def ids(self, column: str, least: int = 0) -> np.ndarray | None:
        """Token ids int32 [n], none below `least`."""
        values = self._list(column, (int,), "token ids")
        if values and not (least <= min(values) and max(values) <= LAST_ID):
            at = next(i for i, value in enumerate(values) if not least <= value <= LAST_ID)
            raise self.wrong(f"{column}[{at}]", values[at], f"a token id, {least} to {LAST_ID}")
        return None if values is None else np.array(values, np.int32)

    def floats(self, column: str) -> np.ndarray | None:
        """Numbers float32 [n]; null is NaN."""
        values = self._list(column, (int, float, type(None)), "numbers")
        if values is None:
            return None
        with np.errstate(over="ignore"):  # beyond float32 is infinite, and seen to be
            return np.array([np.nan if v is None else _float(v) for v in values], np.float64).astype(np.float32)

    def stated(self, column: str) -> np.ndarray | None:
        """As `floats`, but None if every number is null: the writer's way to say that it has none."""
        values = self.floats(column)
        return None if values is None or (len(values) and bool(np.isnan(values).all())) else values

    def flags(self, column: str) -> np.ndarray | None:
        """bool [n]; 0 and 1 are taken, too. None also if all are null."""
        values = self._value(column, (list,), "a list of true or false")
        if values is None or (values and all(value is None for value in values)):
            return None
        values = self._list(column, (bool, int), "true or false") or []
        if not set(values) <= {0, 1}:
            raise self.wrong(column, "other integers", "true or false")
        return np.array(values, bool)

    def row(self, column: str) -> Row | None:
        """An object within this one."""
        value = self.tree.get(column)
        return None if value is None else Row.of(self.place, value, f"{self.within}{column}.")

    def rows(self, column: str) -> list[Row] | None:
        """Objects within this one."""
        values = self._value(column, (list,), "a list")
        if values is None:
            return None
        return [Row.of(self.place, value, f"{self.within}{column}[{i}].") for i, value in enumerate(values)]

    def items(self, column: str) -> list[Any]:
        """A list of anything; empty if it is not there."""
        return self._value(column, (list,), "a list") or []

    def same_length(self, arrays: Mapping[str, np.ndarray | None]) -> None:
        """Refuse columns that the format aligns and that are not."""
        lengths = {name: len(array) for name, array in arrays.items() if array is not None}
        if len(set(lengths.values())) > 1:
            said = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise self.wrong(next(iter(lengths)), f"lengths {said}", "columns of one length")

    def _value(self, column: str, kinds: Sequence[type], expected: str) -> Any:
        value = self.tree.get(column)
        if value is None or type(value) in kinds:
            return value
        raise self.wrong(column, _kind(value), expected)

    def _list(self, column: str, kinds: Sequence[type], expected: str) -> list[Any] | None:
        values = self._value(column, (list,), f"a list of {expected}")
        if values is None or set(map(type, values)) <= set(kinds):
            return values
        at = next(i for i, value in enumerate(values) if type(value) not in kinds)
        raise self.wrong(f"{column}[{at}]", _kind(values[at]), expected)


def has(value: object, *columns: str) -> bool:
    """Whether a value is an object with all of these columns."""
    return isinstance(value, dict) and all(column in value for column in columns)


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return float("inf") if value > 0 else float("-inf")


def _kind(value: object) -> str:
    return _KINDS.get(type(value), type(value).__name__)


def _wrong(place: str, rule: str, got: object, expected: str) -> InputError:
    return InputError(message(place, rule, got=got, expected=expected, do="Mend the line, or cut the file before it"))
