"""A finding in words: one line that a person can act on, and plain values for a record.

In: findings, the catalogue. Out: text, JSON-able dicts.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from lockstep.parity.catalogue import CATALOGUE
from lockstep.parity.evidence import Evidence, Finding


def verdict(finding: Finding) -> str:
    """What was found, why, and what to change; one line."""
    figures = finding.figures
    if finding.status == "parity":
        if not figures.get("tokens"):
            return "parity: nothing contradicts itself, but no token has both series, so none was compared"
        return f"parity: {figures.get('tokens', 0):.0f} tokens compared, nothing beyond the noise floor"
    if finding.status == "undetermined":
        seen = f"{figures.get('differing', 0):.0f} of {figures.get('tokens', 0):.0f} tokens differ"
        size = f"by {figures.get('mean', 0):.3g} nats on average, {figures.get('max', 0):.3g} at most"
        return f"undetermined: {seen}, {size}, and no cause explains it"
    first = finding.evidence[0]
    fault = CATALOGUE[first.code]
    return f"{first.code} ({first.layer}): {fault.title} - {first.why}. To mend it: {fault.setting}"


def plain(finding: Finding) -> dict[str, Any]:
    """All of a finding as plain values."""
    return {
        "status": finding.status,
        "step": finding.step,
        "code": finding.code,
        "layer": str(finding.layer) if finding.layer else None,
        "setting": CATALOGUE[finding.code].setting if finding.code else None,
        "verdict": verdict(finding),
        "figures": dict(finding.figures),
        "evidence": [_evidence(evidence) for evidence in finding.evidence],
        "skipped": dict(finding.skipped),
    }


def _evidence(evidence: Evidence) -> dict[str, Any]:
    told = {name: getattr(evidence, name) for name in ("code", "why", "explained", "certain")}
    return {**told, "figures": deepcopy(dict(evidence.figures)), "layer": str(evidence.layer)}
