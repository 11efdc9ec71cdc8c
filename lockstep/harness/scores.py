"""What the cases of a scoreboard come to: detection, delay, layer, cause, false alarms, the matrix of what was named,
and the same of the rules of other frameworks.

In: cases. Out: `Scores`, their JSON, their Markdown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lockstep.harness.rules import RULES
from lockstep.harness.scoreboard import PATIENCE, Case
from lockstep.harness.standings import fraction, is_hard, seen_by, standings, table

MISSED = "not seen"
UNKNOWN = "undetermined"

BARS = {"hard_at_once": 1.0, "soft_in_time": 0.95, "right_layer": 0.95, "right_cause": 0.90}
"""What an auditor is held to, as fractions by the name in `Scores`; and no false alarm."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Cases, added up. Fractions are of the cases that they are about; NaN of none."""

    cases: Sequence[Case]

    @property
    def faulty(self) -> list[Case]:
        return [case for case in self.cases if case.code is not None]

    @property
    def clean(self) -> list[Case]:
        return [case for case in self.cases if case.code is None]

    @property
    def hard_at_once(self) -> float:
        """Hard faults that were seen at the first step on which they act, before the trainer takes it."""
        return fraction([case.seen and case.delay == 0 for case in self.faulty if is_hard(case)])

    @property
    def soft_in_time(self) -> float:
        """Soft faults that were seen within `PATIENCE` steps."""
        return fraction([case.seen for case in self.faulty if not is_hard(case)])

    @property
    def right_layer(self) -> float:
        return fraction([case.right_layer for case in self.faulty])

    @property
    def right_cause(self) -> float:
        return fraction([case.right_cause for case in self.faulty])

    @property
    def false_alarms(self) -> int:
        """Clean runs in which anything was named, and faulty ones in which it was before the fault."""
        return sum(case.false_alarm for case in self.cases)

    @property
    def missed(self) -> list[str]:
        """Bars that are not reached, in words; a fraction of no runs misses nothing."""
        below = [name.replace("_", " ") for name, bar in BARS.items() if getattr(self, name) < bar]
        return [*below, *(["no false alarms"] if self.false_alarms else [])]

    def matrix(self) -> dict[str, Counter[str]]:
        """What was named for each fault that was put in, how often."""
        rows: dict[str, Counter[str]] = {}
        for case in self.faulty:
            assert case.code is not None, "faulty"
            rows.setdefault(case.code, Counter())[_named(case)] += 1
        return rows

    def seen_by(self) -> dict[str, dict[str, int]]:
        """Which rules saw each fault in time, and in how many of its runs."""
        return {code: seen_by([case for case in self.faulty if case.code == code]) for code in self.matrix()}

    def plain(self) -> dict[str, Any]:
        """All of it as plain values."""
        exact = Counter(case.exact for case in self.clean)
        return {
            "faults": len({case.code for case in self.faulty}),
            "faulty_runs": len(self.faulty),
            "clean_runs": len(self.clean),
            "clean_runs_exact": exact[True],
            "clean_steps": sum(case.steps for case in self.clean),
            "hard_seen_before_the_step": self.hard_at_once,
            "soft_seen_within_steps": self.soft_in_time,
            "patience": PATIENCE,
            "right_layer": self.right_layer,
            "right_cause": self.right_cause,
            "false_alarms": self.false_alarms,
            "seconds": sum(case.seconds for case in self.cases),
            "matrix": {code: dict(row) for code, row in self.matrix().items()},
            "seen_by": self.seen_by(),
            "standings": [row.plain() for row in standings(self.cases)],
            "rules": [{"name": r.name, "what": r.what, "source": r.source, "alarm": r.alarm} for r in RULES],
            "wrong": [_wrong(case) for case in self.faulty if not case.right_cause],
        }

    def markdown(self) -> str:
        """A table of the fractions, one of ours beside the rules of others, and the matrix, one row a fault."""
        hard = sum(map(is_hard, self.faulty))
        rows = [
            ("hard faults seen before the step that would train on them", self.hard_at_once, hard),
            (f"soft faults seen within {PATIENCE} steps", self.soft_in_time, len(self.faulty) - hard),
            ("right layer", self.right_layer, len(self.faulty)),
            ("right cause, first named", self.right_cause, len(self.faulty)),
        ]
        lines = ["| what | of runs | fraction |", "| --- | --- | --- |"]
        lines += [f"| {what} | {count} | {f'{share:.1%}' if count else '-'} |" for what, share, count in rows]
        lines += [f"| false alarms | {len(self.clean)} clean | {self.false_alarms} |", ""]
        lines += [*table(self.cases), ""]
        lines += ["| fault | runs | named | delay, steps | flagged by |", "| --- | --- | --- | --- | --- |"]
        flagging = self.seen_by()
        for code, row in self.matrix().items():
            cases = [case for case in self.faulty if case.code == code]
            named = ", ".join(f"{name} {count}" for name, count in row.most_common())
            delays = [case.delay for case in cases if case.seen and case.delay is not None]
            mean = f"{sum(delays) / len(delays):.2g}" if delays else "-"
            others = ", ".join(f"{name} {count}" for name, count in flagging[code].items()) or "-"
            lines.append(f"| {code} | {len(cases)} | {named} | {mean} | {others} |")
        return "\n".join(lines) + "\n"


def _named(case: Case) -> str:
    if case.right_cause and case.code is not None:
        return case.code
    if case.found is None:
        return MISSED
    return case.found.code or UNKNOWN


def _wrong(case: Case) -> Mapping[str, Any]:
    evidence = [f"{e.code} {e.explained:.2f}" for e in case.found.evidence[:4]] if case.found else []
    return {"code": case.code, "seed": case.seed, "exact": case.exact, "named": _named(case), "evidence": evidence}
