"""One run of the workload, and its place in the record.

In: nothing of ours. Out: `Trial`, `Record`, and their plain forms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Figure = float | int | str | bool | None

MEAN = "mean"
"""The figure that reports draw: the mean over tokens of |log ratio| of the two sides, in nats."""

Purpose = Literal["baseline", "new", "restored", "search", "verify", "attribute", "count"]
"""Why a trial was run first. ``baseline``: OLD against itself; ``new``: NEW as it is; ``restored``: NEW with every
difference put back; ``search``; ``verify``: the answer without one member; ``attribute``: all put back but one member;
``count``: a set smaller than the answer."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What a run of the workload showed. `parity` None: it could not be determined (no answer, too little data).

    `figures` are free; by these names reports know them: `mean` and `max` of |log ratio| in nats, `tokens` compared.
    """

    parity: bool | None
    figures: Mapping[str, Figure] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.parity is None or isinstance(self.parity, bool), "parity is True, False or None"

    @property
    def outcome(self) -> str:
        """In a word: parity, differs, undetermined."""
        return "undetermined" if self.parity is None else "parity" if self.parity else "differs"

    @property
    def mean(self) -> float | None:
        """Mean |log ratio| in nats; None where it was not measured, or is not finite."""
        value = self.figures.get(MEAN)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return None
        return float(value)


@dataclass(frozen=True, slots=True)
class Record:
    """A trial that was run: `kept` are the names at their old values, None for OLD against itself.

    `known`: it was taken from an earlier log, and not run again.
    """

    kept: frozenset[str] | None
    purpose: Purpose
    trial: Trial
    known: bool = False

    def plain(self) -> dict[str, Any]:
        """As JSON holds it, figures by `plain_figure`."""
        return {
            "kept": None if self.kept is None else sorted(self.kept),
            "purpose": self.purpose,
            "parity": self.trial.parity,
            "figures": {_unicode(name): plain_figure(value) for name, value in self.trial.figures.items()},
            "known": self.known,
        }

    @classmethod
    def of(cls, plain: Any) -> Record:
        """Of a plain form. Raises `ValueError` that names what is wrong with it."""
        fields = {"kept", "purpose", "parity", "figures", "known"}
        if not isinstance(plain, dict) or plain.keys() != fields:
            raise ValueError(f"no record with exactly {', '.join(sorted(fields))}")
        kept, figures = plain["kept"], plain["figures"]
        if kept is not None and not (isinstance(kept, list) and all(isinstance(name, str) for name in kept)):
            raise ValueError("kept is no list of names")
        if plain["purpose"] not in get_args(Purpose):
            raise ValueError("purpose is of an unknown kind")
        if not all(value is None or isinstance(value, bool) for value in (plain["parity"], plain["known"])):
            raise ValueError("parity or known is not true, false or null")
        if not (
            isinstance(figures, dict) and all(v is None or isinstance(v, (float, int, str)) for v in figures.values())
        ):
            raise ValueError("figures is no table of numbers and words")
        names = None if kept is None else frozenset(kept)
        return cls(names, plain["purpose"], Trial(plain["parity"], figures), known=bool(plain["known"]))


def plain_figure(value: Figure) -> Figure:
    """As JSON holds it: null for what is not finite, "?" for what is no Unicode."""
    if isinstance(value, str):
        return _unicode(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _unicode(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
