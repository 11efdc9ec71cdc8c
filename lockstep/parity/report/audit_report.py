"""Everything that one audit of two sides has seen.

In: findings, statements, differences. Out: `AuditReport`: the verdict, an exit code, plain values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lockstep.parity.breakdown import Breakdown
from lockstep.parity.evidence import Finding
from lockstep.parity.floor import Floor
from lockstep.parity.observation import Statement
from lockstep.parity.verdict import plain, verdict


@dataclass(frozen=True, slots=True, eq=False)
class AuditReport:
    """`engine` and `scorer` are the words they were opened by; `said` what each says of itself, engine first.

    `differences` float64 [T] each: trainer - sampler of the samples of the last step. `error`: why the audit stopped
    before its end (empty: it did not); what had been seen until then is all here.
    """

    engine: str
    scorer: str
    findings: Sequence[Finding] = ()
    said: Sequence[Statement] = ()
    differences: Sequence[np.ndarray] = ()
    floor: Floor | None = None
    breakdown: Breakdown | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def verdict(self) -> str:
        """One line: what was found, over how many steps; or why there is no finding."""
        last = self.findings[-1] if self.findings else None
        if last is not None and last.status != "parity":
            return verdict(last)
        if self.error:
            seen = f"after {len(self.findings)} steps in parity" if self.findings else "before the first step"
            return f"stopped {seen}: {self.error}"
        if last is None:
            return "nothing was compared"
        if len(self.findings) == 1:
            return verdict(last)
        tokens = sum(finding.figures.get("tokens", 0.0) for finding in self.findings)
        steps = f"{len(self.findings)} steps, {len(self.findings) - 1} weight updates"
        return f"parity: {tokens:.0f} tokens compared over {steps}, nothing beyond the noise floor"

    @property
    def standing(self) -> str:
        """``parity``, ``fault``, ``undetermined`` or ``stopped``."""
        last = self.findings[-1] if self.findings else None
        if last is not None and last.status != "parity":
            return last.status
        return "stopped" if self.error or last is None else "parity"

    @property
    def exit_code(self) -> int:
        """0 parity; 1 a fault, or a mismatch without a name; 2 it could not be carried through."""
        return {"parity": 0, "fault": 1, "undetermined": 1, "stopped": 2}[self.standing]

    def plain(self) -> dict[str, Any]:
        """All of it but the single differences, as plain values."""
        return {
            "verdict": self.verdict,
            "standing": self.standing,
            "error": self.error,
            "engine": self.engine,
            "scorer": self.scorer,
            "findings": [plain(finding) for finding in self.findings],
            "said": [{"name": one.name, "settings": dict(one.settings), "number": one.number} for one in self.said],
            "floor": self.floor.plain() if self.floor else None,
            "breakdown": self.breakdown.rows() if self.breakdown else None,
            "facts": dict(self.facts),
        }
