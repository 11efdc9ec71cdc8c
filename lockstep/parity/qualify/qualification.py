"""A qualification of NEW against OLD: the noun that every report is made of, its line of verdict, its JSON form.

In: a `Restoration`, and what the caller says of the two sides and of the machine. Out: sentences, plain values.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lockstep.parity.qualify.difference import Difference, plain, shown
from lockstep.parity.qualify.restoration import Member, Restoration, Status
from lockstep.parity.qualify.trial import Figure, Trial, plain_figure

SCHEMA = "lockstep.qualify/1"

EXIT_CODES: Mapping[Status, int] = {"parity": 0, "restored": 1, "outside": 1, "undetermined": 1, "refused": 2}

Show = Callable[[object], str]
"""How a report shows what is not its own: names, values, labels. They are anybody's text."""


@dataclass(frozen=True, slots=True)
class Qualification:
    """`old` and `new` are labels for people, e.g. ``vLLM 0.18.1``; `facts` and `figures` are the caller's, by name
    (machine, versions, workload; seconds, tokens ...), and are reported as they are."""

    restoration: Restoration
    old: str = "OLD"
    new: str = "NEW"
    facts: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0: parity. 1: NEW differs, or it is not known. 2: OLD does not agree with itself."""
        return EXIT_CODES[self.restoration.status]

    @property
    def verdict(self) -> str:
        """One printable line."""
        return verdict(self)

    def plain(self) -> dict[str, Any]:
        """All of it as JSON holds it. Raises `InputError` for a value of a setting that is not plain."""
        found = self.restoration
        masked = found.masking
        return {
            "schema": SCHEMA,
            "verdict": self.verdict,
            "status": found.status,
            "exit_code": self.exit_code,
            "old": label(self.old),
            "new": label(self.new),
            "restored_by": {m.difference.name: plain(m.difference.name, m.difference.old) for m in found.members},
            "minimal": found.minimal,
            "smallest": found.smallest,
            "masking": [sorted(record.kept or ()) for record in masked] if masked else None,
            "differences": [_difference(difference) for difference in found.differences],
            "members": [_member(member) for member in found.members],
            "num_trials": len(found.records),
            "num_undetermined": found.undetermined,
            "bound": found.bound,
            "trials": [record.plain() for record in found.records],
            "facts": {label(name): plain_figure(value) for name, value in self.facts.items()},
            "figures": {label(name): plain_figure(value) for name, value in self.figures.items()},
        }


def label(text: object) -> str:
    """A label as it stands if it is printable, else as `shown` shows it."""
    return text if isinstance(text, str) and text.isprintable() and text.strip() else shown(text)


def verdict(qualification: Qualification, show: Show = label) -> str:
    """What was found, in a line; `show` is applied to labels and to each ``name=value``."""
    found = qualification.restoration
    old, new = show(qualification.old), show(qualification.new)
    trials = f"({_count(len(found.records), 'trial')})"
    differing = _count(len(found.differences), "setting")
    if found.status == "refused":
        how = "differs from itself" if found.records[0].trial.parity is False else "could not be compared with itself"
        return f"refused: {old} {how}, so that nothing can be qualified against it {trials}"
    if found.status == "undetermined" and (not found.records or found.records[-1].purpose not in ("new", "restored")):
        return f"undetermined: the search for what restores {new} was cut off {trials}"
    if found.status == "undetermined":
        which = "with all differing settings put back" if found.records[-1].kept else "as it is"
        return f"undetermined: {new} {which} gave no answer {trials}"
    if found.status == "parity":
        though = f", though {differing} differ{'s' * (len(found.differences) == 1)}" if found.differences else ""
        return f"{new} agrees with {old}{though} {trials}"
    if found.status == "outside":
        also = f", also with the {differing} that differ{'s' * (len(found.differences) == 1)} put back"
        where = f"{also if found.differences else ''}: the cause is outside of the settings, e.g. in the code"
        return f"{new} differs from {old}{where} {trials}"
    settings = ", ".join(show(str(member.difference.restored)) for member in found.members)
    return f"{new} differs from {old}; restored by {_count(len(found.members), 'setting')}: {settings} {trials}"


def claims(qualification: Qualification, show: Show = label) -> Iterator[str]:
    """Sentences that say what is proven of the verdict, and what is not."""
    found = qualification.restoration
    if found.status == "restored":
        yield from _proofs(found, show)
    if found.undetermined:
        yield (
            f"{_count(found.undetermined, 'trial')} of {len(found.records)} gave no answer; none of them was counted "
            "as parity."
        )
    masked = found.masking
    if masked:
        less, more = (kept_in_words(record.kept, found.differences, show) for record in masked)
        yield f"Settings mask one another: with {less} put back the sides agree, with {more} they differ."
    known = sum(record.known for record in found.records)
    again = f", {known} of them taken from an earlier log" if known else ""
    yield f"Trials: {len(found.records)}{again}; no search among as many differences needs more than {found.bound}."


def _proofs(found: Restoration, show: Show) -> Iterator[str]:
    if found.minimal:
        yield "None of these can be left out: with any single one new again, the sides differ."
    else:
        names = ", ".join(show(shown(member.difference.name)) for member in found.members if not member.needed)
        yield f"Whether all are needed is open: the trial with {names} new again (each by itself) gave no answer."
    yield {
        "counted": "No smaller set restores parity: every one was tried.",
        "monotone": (
            "No other set restores parity unless it holds these too: the sides differ with everything put back but "
            "any one of them. (That putting back more never breaks parity is assumed; no trial speaks against it.)"
        ),
        "open": "Whether a smaller set would do is open: not all of them were tried.",
    }[found.smallest]


def kept_in_words(kept: Collection[str] | None, differences: Collection[Difference], show: Show = label) -> str:
    """Which differences are put back, shortly; `kept` None is OLD against itself."""
    if kept is None:
        return "OLD against itself"
    names = [difference.name for difference in differences]
    rest = [name for name in names if name not in kept]
    if not kept or not rest:
        return "no setting" if not kept else "all settings"  # a name with a space would stand in quotes
    if len(rest) < len(kept) and len(rest) <= 2:
        return f"all but {', '.join(show(shown(name)) for name in rest)}"
    return ", ".join(show(shown(name)) for name in names if name in kept)


def nats(value: float | None) -> str:
    """A mean |log ratio|: ``0.0`` only for zero itself, so that nothing small can pass for it; a dash for none."""
    return "\N{EN DASH}" if value is None else "0.0" if value == 0 else f"{value:.3g}"


def ladder(qualification: Qualification) -> list[tuple[str, Trial]]:
    """What a figure of the answer shows, top to bottom, as (what was run, its trial), as far as it was run.

    NEW as it is; with all put back but one member, for each member; with the members put back (without members: with
    everything put back); OLD against itself.
    """
    found = qualification.restoration
    every = frozenset(difference.name for difference in found.differences)
    rows: list[tuple[str, frozenset[str] | None]] = [(f"{label(qualification.new)} as it is", frozenset())]
    rows += [(f"only {shown(m.difference.name)} new", every - {m.difference.name}) for m in found.members]
    restored = "restored" if found.members else "with everything put back"
    rows += [(f"{label(qualification.new)} {restored}", found.kept or every)]
    rows += [(f"{label(qualification.old)} against itself", None)]
    trials = [(text, kept, found.trial(kept)) for text, kept in rows]
    told = [kept for _, kept, _ in trials]
    return [(text, trial) for i, (text, kept, trial) in enumerate(trials) if trial and kept not in told[:i]]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _difference(difference: Difference) -> dict[str, Any]:
    name = difference.name
    return {"name": name, "old": plain(name, difference.old), "new": plain(name, difference.new)}


def _member(member: Member) -> dict[str, Any]:
    alone, without = (
        {"parity": trial.parity, "mean": trial.mean, "outcome": trial.outcome}
        for trial in (member.alone, member.without)
    )
    return {**_difference(member.difference), "needed": member.needed, "alone": alone, "without": without}
