"""What a search for the restoring settings concluded, and what of it is proven.

In: records of trials. Out: `Member`, `Restoration`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lockstep.parity.qualify.difference import Difference
from lockstep.parity.qualify.trial import Record, Trial

Status = Literal["parity", "restored", "outside", "refused", "undetermined"]
"""``parity``: NEW agrees as it is. ``restored``: with some settings put back it agrees. ``outside``: not even with all
of them. ``refused``: OLD does not agree with itself (or it is not known whether it does). ``undetermined``: NEW as it
is, or with all settings put back, gave no answer."""

Smallest = Literal["counted", "monotone", "open"]
"""``counted``: every smaller set was tried and differs. ``monotone``: each member is indispensable, i.e. NEW differs
with everything put back but it; then no other set restores, unless putting back more can break parity, of which no
trial shows a sign. ``open``: neither."""


@dataclass(frozen=True, slots=True)
class Member:
    """One setting of the answer.

    `without`: the answer's other members put back, this one new. `alone`: all differences put back but this one, so
    that its figures are what this one does by itself.
    """

    difference: Difference
    without: Trial
    alone: Trial

    @property
    def needed(self) -> bool:
        """Whether parity was seen to break without it; undetermined is no sight."""
        return self.without.parity is False


@dataclass(frozen=True, slots=True)
class Restoration:
    """The answer with all its trials, in the order in which they were asked for, none twice.

    `bound`: no search among as many differences runs more trials than this.
    """

    status: Status
    differences: tuple[Difference, ...]
    records: tuple[Record, ...]
    bound: int
    members: tuple[Member, ...] = ()
    smallest: Smallest = "open"

    @property
    def kept(self) -> frozenset[str]:
        """Names of the members: put these back."""
        return frozenset(member.difference.name for member in self.members)

    @property
    def minimal(self) -> bool:
        """Whether it restores, and parity was seen to break without any one of its members."""
        return self.status == "restored" and all(member.needed for member in self.members)

    @property
    def undetermined(self) -> int:
        """How many trials gave no answer; none of them counted as parity."""
        return sum(record.trial.parity is None for record in self.records)

    @property
    def masking(self) -> tuple[Record, Record] | None:
        """Two trials, if any, that show faults that hide one another: more was put back, and parity broke."""
        return masking(self.records)

    def trial(self, kept: frozenset[str] | None) -> Trial | None:
        """The trial of a set, if it was run."""
        return next((record.trial for record in self.records if record.kept == kept), None)


def masking(records: tuple[Record, ...]) -> tuple[Record, Record] | None:
    """The first record with parity, and the first of a larger set that differs."""
    agree = [record for record in records if record.kept is not None and record.trial.parity]
    differ = [record for record in records if record.kept is not None and record.trial.parity is False]
    for one in agree:
        for other in differ:
            assert one.kept is not None and other.kept is not None, "chosen so"
            if one.kept < other.kept:
                return one, other
    return None
