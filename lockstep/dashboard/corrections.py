"""What the corrections of a run removed, as a table. In: the lines of the metrics. Out: rows of text, or nothing.

Sums over the steps are of tokens and of |advantage|, never means of the steps' shares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lockstep.dashboard.units import ABSENT, count

SIGNS = ("positive", "negative", "zero")
REMOVED = "corrections/removed_"
Line = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Removals:
    """The table: a row for each sign of the advantage, then all; `steps` are those that had a correction."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    steps: int


def removals(lines: Sequence[Line]) -> Removals | None:
    """The table of a run; None if it used no correction."""
    corrected = [line for line in lines if line.get("corrections/frac_removed") is not None]
    if not corrected:
        return None
    names = dict.fromkeys(name for line in corrected for name in line if name.startswith(REMOVED))
    causes = tuple(cause for cause in dict.fromkeys(name.rsplit("/", 1)[1] for name in names) if _any(corrected, cause))
    columns = ("advantage", "tokens", "kept", "capped", *(cause.replace("_", " ") for cause in causes))
    rows = [_row(corrected, (sign,), causes) for sign in SIGNS]
    return Removals((*columns, "removed", "of |advantage|"), (*rows, _row(corrected, SIGNS, causes)), len(corrected))


def _any(lines: Sequence[Line], cause: str) -> bool:
    return _total(lines, SIGNS, f"removed_{{}}/{cause}") > 0


def _row(lines: Sequence[Line], signs: tuple[str, ...], causes: tuple[str, ...]) -> tuple[str, ...]:
    kept, capped = (_total(lines, signs, f"{name}_{{}}") for name in ("kept", "capped"))
    by_cause = [_total(lines, signs, f"removed_{{}}/{cause}") for cause in causes]
    tokens = kept + capped + sum(by_cause)
    mass = gone = 0.0
    for line in lines:
        for sign in signs:
            mine = line.get(f"corrections/advantage_{sign}") or 0.0
            mass += mine
            gone += mine * (line.get(f"corrections/advantage_removed_{sign}") or 0.0)
    name = signs[0] if len(signs) == 1 else "all"
    shares = (_share(sum(by_cause), tokens), _share(gone, mass))
    return (name, *(count(number) for number in (tokens, kept, capped, *by_cause)), *shares)


def _total(lines: Sequence[Line], signs: tuple[str, ...], name: str) -> float:
    return sum(line.get(f"corrections/{name.format(sign)}") or 0 for line in lines for sign in signs)


def _share(part: float, whole: float) -> str:
    """Per cent; ``0 %`` only for nothing at all."""
    if not whole:
        return ABSENT
    return "0 %" if not part else "< 0.1 %" if part < 0.001 * whole else f"{100 * part / whole:.1f} %"
