"""In which settings two configurations differ; refuses pairs that differ in what is no setting.

In: resolved settings of OLD and NEW by name, defaults included. Out: `Difference`s, or an `InputError`. What both sides
must share (the model, the prompts ...) may not differ, and nothing may be unknown: an effect of it would be blamed on
a setting.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import orjson

from lockstep.errors import InputError, message


class Unknown(Enum):
    """The type of `UNKNOWN`."""

    UNKNOWN = "unknown"


UNKNOWN: Final = Unknown.UNKNOWN
"""The value of a setting that a side has and does not tell. A missing name means the same."""

EQUAL: Final = frozenset({"chat_template", "model", "prompts", "seed", "tokenizer"})
"""What OLD and NEW must state and share; give digests where the thing itself is long."""

MOST_SHOWN = 60
"""Characters of a value in a sentence or table; the JSON form has all of them."""

_DEPTH = 32
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_./:+-]*")


@dataclass(frozen=True, slots=True)
class Setting:
    """One name and its value: text, number, bool, None, or lists and string-keyed mappings of these."""

    name: str
    value: object

    def __str__(self) -> str:
        """``name=value`` on one line, whatever is in them."""
        return f"{shown(self.name)}={shown(self.value)}"


@dataclass(frozen=True, slots=True)
class Difference:
    """A setting whose value in OLD is not the one in NEW."""

    name: str
    old: object
    new: object

    @property
    def restored(self) -> Setting:
        """The setting with its old value: what to set in NEW."""
        return Setting(self.name, self.old)


def differences(
    old: Mapping[str, object], new: Mapping[str, object], equal: Collection[str] = EQUAL
) -> tuple[Difference, ...]:
    """The settings that differ, by name.

    1 and 1.0 are the same, 1 and True are not, nor are "1" and 1; the order of a mapping does not count, that of a list
    does. Raises `InputError` if a name is missing or `UNKNOWN` on a side (a release that lacks a setting did
    something: state that as its value), if a name of `equal` is not stated or differs, or if a value is not plain.
    """
    names = sorted({*old, *new, *equal})
    _refuse_unknown({name: [s for s, side in _sides(old, new) if not _told(side, name)] for name in names})
    for name in names:
        plain(name, name)  # a name must be text that a record can hold, as values must
    found = tuple(
        Difference(name, old[name], new[name])
        for name in names
        if _canonical(name, old[name]) != _canonical(name, new[name])
    )
    _refuse_confounded([difference for difference in found if difference.name in equal])
    return found


def fingerprint(old: Mapping[str, object], new: Mapping[str, object]) -> str:
    """64 hex digits that are the same for equal pairs of configurations (as `differences` compares), and for no others.

    Raises `InputError` for a value that is not plain.
    """
    told = [{name: _canonical(name, side[name]) for name in side} for _, side in _sides(old, new)]
    return hashlib.sha256(orjson.dumps(told, option=orjson.OPT_SORT_KEYS)).hexdigest()


def shown(value: object, most: int = MOST_SHOWN) -> str:
    """A name or value for people: one printable line of `most` characters or little more, marked where it is cut.

    Simple words stand as they are; other text is quoted as in JSON, so that "1" and 1, "true" and True look unlike.
    """
    if isinstance(value, str) and _WORD.fullmatch(value) and value not in {"true", "false", "null"}:
        text, quoted = value, False
    elif isinstance(value, str):
        text, quoted = _escaped(value[: most + 1]), True
    else:
        text, quoted = _unquoted(value), False
    if len(text) > most:
        text = text[: most - 1].rstrip("\\") + "…"
    return f'"{text}"' if quoted else text


def plain(name: str, value: object) -> Any:
    """`value` as JSON can hold it (tuples become lists). Raises `InputError` naming `name` if JSON cannot."""
    return _plain(name, value, 0)


def _sides(old: Mapping[str, object], new: Mapping[str, object]) -> tuple[tuple[str, Mapping[str, object]], ...]:
    return (("OLD", old), ("NEW", new))


def _told(side: Mapping[str, object], name: str) -> bool:
    return side.get(name, UNKNOWN) is not UNKNOWN


def _refuse_unknown(silent: Mapping[str, list[str]]) -> None:
    """`silent`: by name, the sides that do not tell its value."""
    missing = {name: sides for name, sides in silent.items() if sides}
    if missing:
        raise InputError(
            message(
                f"settings ({_list(missing)})",
                "both sides must tell their values, or what differs cannot be listed",
                got=", ".join(f"no {shown(name)} of {' and '.join(sides)}" for name, sides in missing.items()),
                expected="resolved values of OLD and NEW, defaults included",
                do="State what each side does, also where its release has no such setting",
            )
        )


def _refuse_confounded(found: list[Difference]) -> None:
    if found:
        raise InputError(
            message(
                f"baseline ({_list(d.name for d in found)})",
                "OLD and NEW must share it, or its effect would be blamed on a setting",
                got=", ".join(f"{shown(d.name)} {shown(d.old)} in OLD and {shown(d.new)} in NEW" for d in found),
                expected="equal values",
                do="Run both sides with the same ones, and qualify a change of these by itself",
            )
        )


def _list(names: Iterable[str]) -> str:
    return ", ".join(shown(name) for name in names)


def _canonical(name: str, value: object) -> str:
    """Text that is equal for equal values only."""
    return orjson.dumps(_whole(_plain(name, value, 0)), option=orjson.OPT_SORT_KEYS).decode()


def _whole(value: Any) -> Any:
    """Floats that are whole numbers as integers, so that 1.0 is written as 1 is."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, list):
        return [_whole(part) for part in value]
    if isinstance(value, dict):
        return {key: _whole(part) for key, part in value.items()}
    return value


def _plain(name: str, value: object, depth: int) -> Any:
    if depth > _DEPTH:
        raise _not_plain(name, f"more than {_DEPTH} levels of nesting")
    if value is None or isinstance(value, bool):
        return value
    if type(value) is str:
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            raise _not_plain(name, "text that is no Unicode (half of a surrogate pair)")
        return value
    if type(value) is int and -(2**63) <= value < 2**64:
        return value
    if type(value) is float and math.isfinite(value):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(name, part, depth + 1) for part in value]
    if isinstance(value, Mapping) and all(type(key) is str for key in value):
        return {_plain(name, key, depth): _plain(name, part, depth + 1) for key, part in value.items()}
    raise _not_plain(name, f"{shown(repr(value))} ({type(value).__name__})")


def _not_plain(name: str, got: str) -> InputError:
    return InputError(
        message(
            f"setting ({shown(name)})",
            "values must be plain, so that a record can hold them",
            got=got,
            expected="text, a finite number of 64 bits, true, false, null, or lists and tables of these",
            do="Give it as text",
        )
    )


def _escaped(text: str) -> str:
    """As inside of JSON's quotes, and what cannot be seen as an escape too."""
    return _visible(text.replace("\\", "\\\\").replace('"', '\\"'))


def _unquoted(value: object) -> str:
    """Numbers, lists, tables and what is not plain, on a line."""
    try:
        text = orjson.dumps(value).decode()
    except TypeError:
        text = repr(value)
    return _visible(text)


def _visible(text: str) -> str:
    codes = ((letter, ord(letter)) for letter in text)
    return "".join(
        letter if letter.isprintable() else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
        for letter, code in codes
    )
