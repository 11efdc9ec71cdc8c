"""Our auditor and the rules of other frameworks, side by side on the same runs.

In: cases. Out: `Standing`, a row each, ours first; which rules saw a fault.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lockstep.harness.rules import RULES, Rule
from lockstep.harness.scoreboard import PATIENCE, Case
from lockstep.parity.catalogue import CATALOGUE

OURS = "Lockstep's auditor"


@dataclass(frozen=True, slots=True)
class Standing:
    """One row. Fractions are of the runs of hard and of soft faults, and of all faulty ones; NaN of none.

    `hard_at_once`: flagged at the first step on which the fault acts, `soft_in_time` within `PATIENCE` steps, neither
    if something was flagged before. `false_alarms`: clean runs in which something was, and faulty ones before the
    fault. `layer`, `cause`: named rightly; None of who names none.
    """

    name: str
    hard_at_once: float
    soft_in_time: float
    false_alarms: int
    layer: float | None = None
    cause: float | None = None
    alarm: bool = True

    @classmethod
    def of_auditor(cls, cases: Sequence[Case]) -> Standing:
        """Our own row."""
        faulty = [case for case in cases if case.code is not None]
        return cls(
            OURS,
            fraction([case.seen and case.delay == 0 for case in faulty if is_hard(case)]),
            fraction([case.seen for case in faulty if not is_hard(case)]),
            sum(case.false_alarm for case in cases),
            fraction([case.right_layer for case in faulty]),
            fraction([case.right_cause for case in faulty]),
        )

    @classmethod
    def of_rule(cls, rule: Rule, cases: Sequence[Case]) -> Standing:
        """The row of a rule."""
        faulty = [case for case in cases if case.code is not None]
        return cls(
            rule.name,
            fraction([saw(case, rule.name) for case in faulty if is_hard(case)]),
            fraction([saw(case, rule.name) for case in faulty if not is_hard(case)]),
            sum(case.flagged_falsely(rule.name) for case in cases),
            alarm=rule.alarm,
        )

    def plain(self) -> dict[str, Any]:
        """The row as plain values."""
        return asdict(self)


def standings(cases: Sequence[Case]) -> list[Standing]:
    """Every row, ours first, the others in the order of `RULES`."""
    return [Standing.of_auditor(cases), *(Standing.of_rule(rule, cases) for rule in RULES)]


def saw(case: Case, rule: str) -> bool:
    """Whether a rule flagged a fault in time: at once if it is hard, within `PATIENCE` steps if not, and not before."""
    delay = case.flag_delay(rule)
    return delay is not None and delay < (1 if is_hard(case) else PATIENCE)


def seen_by(cases: Sequence[Case]) -> dict[str, int]:
    """In how many of these (faulty) cases each rule saw the fault; without those that never did."""
    counts = {rule.name: sum(saw(case, rule.name) for case in cases) for rule in RULES}
    return {name: count for name, count in counts.items() if count}


def table(cases: Sequence[Case]) -> list[str]:
    """The rows as a table of Markdown, the sources as its footnotes."""
    lines = [
        "| rule | hard faults flagged at once | soft faults flagged in time | false alarms | layer | cause |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for number, row in enumerate(standings(cases)):
        mark = f"[^{number}]" if number else ""
        shares = [row.hard_at_once, row.soft_in_time]
        named = [row.layer, row.cause]
        cells = [*map(_percent, shares), str(row.false_alarms), *map(_percent, named)]
        lines.append(f"| {row.name}{mark} | {' | '.join(cells)} |")
    lines.append("")
    for number, rule in enumerate(RULES, 1):
        kind = "" if rule.alarm else " A bound of a correction: flagged if anything is cut by it."
        lines.append(f"[^{number}]: {rule.what}.{kind} Source: {rule.source}.")
    return lines


def is_hard(case: Case) -> bool:
    """Whether a faulty case is one of those that must be seen at once."""
    assert case.code is not None, "faulty"
    return CATALOGUE[case.code].hard


def fraction(values: Sequence[bool]) -> float:
    """The share of what is true; NaN of nothing."""
    return sum(values) / len(values) if values else float("nan")


def _percent(share: float | None) -> str:
    return "-" if share is None or math.isnan(share) else f"{share:.1%}"
