"""A qualification as tables of text, for every report that has tables.

In: a `Qualification`. Out: `Table`s; every cell is one printable line, and not yet escaped for any format.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lockstep.parity.qualify.difference import shown
from lockstep.parity.qualify.qualification import Qualification, kept_in_words, label, nats
from lockstep.parity.qualify.restoration import Member
from lockstep.parity.qualify.trial import MEAN, Figure, Record

PURPOSES = {
    "baseline": "is OLD repeatable?",
    "new": "does NEW differ?",
    "restored": "is it a setting?",
    "search": "search",
    "verify": "is each member needed?",
    "attribute": "what does one do alone?",
    "count": "does a smaller set do?",
}


@dataclass(frozen=True, slots=True)
class Table:
    """`rows` have as many cells as `columns`; `code`: places of the columns that hold names and values."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    code: frozenset[int] = frozenset()
    note: str = ""


def tables(qualification: Qualification) -> list[Table]:
    """Those that have rows: what to put back, all differences, trials, figures, facts."""
    return [table for table in _tables(qualification) if table.rows]


def _tables(qualification: Qualification) -> Iterator[Table]:
    found = qualification.restoration
    yield Table(
        "Put back",
        ("setting", "old value", "new value", "alone", "without it"),
        tuple(_member(member) for member in found.members),
        frozenset({0, 1, 2}),
        "Mean |log ratio| in nats. Alone: all differences put back but this one. Without it: only the others of this "
        "table put back.",
    )
    yield Table(
        "Settings that differ",
        ("setting", "old value", "new value", "put back"),
        tuple(
            (shown(d.name), shown(d.old), shown(d.new), "yes" if d.name in found.kept else "")
            for d in found.differences
        ),
        frozenset({0, 1, 2}),
    )
    yield Table(
        "Trials",
        ("no.", "why", "put back", "outcome", "mean |log ratio|", "other figures"),
        tuple(_trial(number, record, qualification) for number, record in enumerate(found.records, start=1)),
        note="In the order in which they were asked for; none is run twice.",
    )
    for title, values in (("Figures", qualification.figures), ("Machine and workload", qualification.facts)):
        yield Table(title, ("name", "value"), tuple((label(name), figure(value)) for name, value in values.items()))


def figure(value: Figure) -> str:
    """A free figure: text as it stands, numbers in six digits that count, a dash for None."""
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, float):
        return f"{value:.6g}"
    return label(value) if isinstance(value, str) else shown(value)


def _member(member: Member) -> tuple[str, ...]:
    difference = member.difference
    trials = (member.alone, member.without)
    said = [f"{nats(trial.mean)} ({trial.outcome})" for trial in trials]
    return (shown(difference.name), shown(difference.old), shown(difference.new), *said)


def _trial(number: int, record: Record, qualification: Qualification) -> tuple[str, ...]:
    trial = record.trial
    return (
        str(number),
        PURPOSES[record.purpose] + (" (earlier log)" if record.known else ""),
        kept_in_words(record.kept, qualification.restoration.differences),
        trial.outcome,
        nats(trial.mean),
        ", ".join(f"{label(name)} {figure(value)}" for name, value in trial.figures.items() if name != MEAN),
    )
