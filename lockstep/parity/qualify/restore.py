"""Finds the fewest settings that, put back in NEW, restore parity with OLD: delta debugging, and proofs of its answer.

In: differences, and functions that run the workload. Out: a `Restoration`.

    OLD against itself      must agree, or nothing can be qualified against it
    NEW as it is            agrees: nothing to restore
    NEW, all put back       differs: the cause is outside of the settings
    halve                   take back a half of what is put back, then quarters ... single settings, while it agrees
    sweep                   one factor at a time, until every single member is seen to be needed
    count                   the sets that are smaller, if there are few: faults may mask one another
    attribute               all put back but one member: what that one does by itself

Source: Zeller and Hildebrandt, Simplifying and isolating failure-inducing input, IEEE TSE 28 (2002): the part that
reduces to complements, with the set that agrees in the place of the input that fails.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import comb

from lockstep.errors import InputError, message
from lockstep.parity.qualify.difference import Difference, shown
from lockstep.parity.qualify.restoration import Member, Restoration, Smallest, Status, masking
from lockstep.parity.qualify.trial import Purpose, Record, Trial

Kept = frozenset[str]

COUNTING = 32
"""Trials that may be spent on counting: enough for 2 members of up to 31 differences, 3 of 7, 4 of 5."""


@dataclass(frozen=True, slots=True)
class Workload:
    """How to run it. `trial` runs NEW with the named differences at their OLD values; `baseline` OLD against itself.

    Equal calls must give equal outcomes, for each is made once. Whatever they raise ends the search; `seen` has by
    then been told of each record, the moment it was there.
    """

    trial: Callable[[Kept], Trial]
    baseline: Callable[[], Trial]
    seen: Callable[[Record], None] = lambda _: None


def bound(count: int, counting: int = COUNTING) -> int:
    """The most trials of a search among `count` differences: ends, halving, sweeps, counting, attribution."""
    return 3 + max(0, 2 * count - 2) + count * (count + 1) // 2 + counting + count


def restore(
    differences: Sequence[Difference], workload: Workload, *, known: Sequence[Record] = (), counting: int = COUNTING
) -> Restoration:
    """The smallest set of differences that restores parity, as far as trials show.

    The answer always agrees, and each of its members was tried new again; trials without an answer never count as
    parity, so that they can make the answer larger but not wrong. `known` are records of an earlier search over the
    same pair: they are not run again, not even undetermined ones (leave those out to have them run). At most
    `counting` trials are spent on sets smaller than the answer, and none if they would not do.

    Raises `InputError` if `known` is about other differences, or contradicts itself.
    """
    ordered = tuple(sorted(differences, key=lambda difference: difference.name))
    names = tuple(difference.name for difference in ordered)
    assert len(set(names)) == len(names), "one difference a name"
    runs = _Runs(names, workload, _earlier(known, frozenset(names)))
    status = _ends(runs)
    members: tuple[Member, ...] = ()
    smallest: Smallest = "open"
    if status == "restored":
        kept = _sweep(runs, _halve(runs, runs.all, names))
        kept, counted = _count(runs, kept, counting)
        members = tuple(_member(runs, difference, kept) for difference in ordered if difference.name in kept)
        if counted:
            smallest = "counted"
        elif all(member.alone.parity is False for member in members) and not masking(runs.records):
            smallest = "monotone"
    return Restoration(status, ordered, runs.records, bound(len(names), counting), members, smallest)


@dataclass(slots=True, eq=False)
class _Runs:
    """Runs each set once, in order; what an earlier log knows is not run."""

    names: tuple[str, ...]
    workload: Workload
    earlier: dict[Kept | None, Trial]
    done: dict[Kept | None, Record] = field(default_factory=dict)

    @property
    def all(self) -> Kept:
        return frozenset(self.names)

    @property
    def records(self) -> tuple[Record, ...]:
        return tuple(self.done.values())

    def run(self, kept: Kept | None, purpose: Purpose) -> Trial:
        """The trial of NEW with `kept` put back; of OLD against itself for None."""
        if kept not in self.done:
            trial = self.earlier.get(kept)
            known = trial is not None
            if trial is None:
                trial = self.workload.baseline() if kept is None else self.workload.trial(kept)
            self.done[kept] = Record(kept, purpose, trial, known=known)
            self.workload.seen(self.done[kept])
        return self.done[kept].trial

    def agree(self, kept: Kept, purpose: Purpose) -> bool:
        """Whether it was seen to agree."""
        return self.run(kept, purpose).parity is True

    def is_free(self, kept: Kept) -> bool:
        """Whether the answer is there without a run."""
        return kept in self.done or kept in self.earlier


def _earlier(known: Sequence[Record], names: Kept) -> dict[Kept | None, Trial]:
    """Trials by set; of several of one set, one that has an answer."""
    trials: dict[Kept | None, Trial] = {}
    for record in known:
        if record.kept is not None and not record.kept <= names:
            strange = ", ".join(shown(name) for name in sorted(record.kept - names))
            raise InputError(
                message(
                    f"known trials ({strange})",
                    "an earlier log must be about the same differences",
                    got="a trial that puts back what does not differ",
                    expected=f"names among {', '.join(shown(name) for name in sorted(names)) or 'none'}",
                    do="Give the log of this pair, or begin anew",
                )
            )
        before = trials.get(record.kept, Trial(None)).parity
        if None not in (before, record.trial.parity) and before != record.trial.parity:
            kept = "OLD" if record.kept is None else ", ".join(shown(name) for name in sorted(record.kept)) or "NEW"
            raise InputError(
                message(
                    f"known trials ({kept})",
                    "one set must have one outcome, or no search over outcomes means anything",
                    got="parity once and a difference once",
                    expected="equal outcomes",
                    do="Make the workload repeatable (seeds, batch order), then begin anew",
                )
            )
        if before is None:
            trials[record.kept] = record.trial
    return trials


def _ends(runs: _Runs) -> Status:
    """Whether there is something to search for."""
    if not runs.run(None, "baseline").parity:
        return "refused"
    new = runs.run(frozenset(), "new").parity
    if new is None:
        return "undetermined"
    if new:
        return "parity"
    whole = runs.run(runs.all, "restored").parity
    return "undetermined" if whole is None else "restored" if whole else "outside"


def _halve(runs: _Runs, kept: Kept, chunk: Sequence[str]) -> Kept:
    """`kept` (which agrees) less as much of `chunk` as can be taken back: all of it, or its halves in turn."""
    if runs.agree(kept.difference(chunk), "search"):
        return kept.difference(chunk)
    if len(chunk) > 1:
        middle = len(chunk) // 2
        kept = _halve(runs, kept, chunk[:middle])
        kept = _halve(runs, kept, chunk[middle:])
    return kept


def _sweep(runs: _Runs, kept: Kept) -> Kept:
    """`kept` (which agrees) less single members, until none can be taken back.

    If faults do not mask one another, nothing is taken back: halving tried each member while more was put back.
    """
    for name in sorted(kept):
        if runs.agree(kept - {name}, "verify"):
            return _sweep(runs, kept - {name})
    return kept


def _count(runs: _Runs, kept: Kept, most: int) -> tuple[Kept, bool]:
    """The smallest set that agrees, and whether it is one: `kept`, or one that is smaller still.

    Tries all sets smaller than `kept` in order of size, if there are `most` or fewer that were not run.
    """
    total = sum(comb(len(runs.names), size) for size in range(len(kept)))
    if total > most + len(runs.done) + len(runs.earlier):
        return kept, False
    smaller = [frozenset(some) for size in range(len(kept)) for some in combinations(runs.names, size)]
    if sum(not runs.is_free(some) for some in smaller) > most:
        return kept, False
    unclear = [len(kept)]  # sizes of sets without an answer; the first is no smaller than any answer
    for some in smaller:
        if runs.agree(some, "count"):
            return some, len(some) <= min(unclear)
        if runs.run(some, "count").parity is None:
            unclear.append(len(some))
    return kept, len(kept) <= min(unclear)


def _member(runs: _Runs, difference: Difference, kept: Kept) -> Member:
    without = runs.run(kept - {difference.name}, "verify")
    return Member(difference, without, runs.run(runs.all - {difference.name}, "attribute"))
