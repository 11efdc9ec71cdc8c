"""An audit as one HTML file, for people: the verdict, figures, evidence, what each side says of itself.

In: an `AuditReport`. Out: HTML without scripts, and without fonts or images from elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lockstep.parity.catalogue import CATALOGUE
from lockstep.parity.page import rendered
from lockstep.parity.report import figures
from lockstep.parity.report.audit_report import AuditReport

COLOURS = {"parity": "good", "fault": "bad", "undetermined": "open", "stopped": "open"}


def page(report: AuditReport) -> str:
    """The whole page."""
    rows = report.breakdown.rows() if report.breakdown else []
    return rendered(
        "report/page.html.jinja",
        report=report,
        colour=COLOURS[report.standing],
        headline=_headline(report),
        claims=list(_claims(report)),
        bars=figures.histogram(report.differences),
        line=figures.positions(report.differences),
        parts=figures.parts(rows),
        rows=rows,
        width=figures.WIDTH,
        height=figures.HEIGHT,
        evidence=list(_evidence(report)),
        settings=list(_settings(report)),
        floor=_floor(report),
        skipped=dict(report.findings[-1].skipped) if report.findings else {},
    )


def _headline(report: AuditReport) -> str:
    """What was found, in few words."""
    code = report.findings[-1].code if report.findings else None
    return f"{code} ({report.findings[-1].layer}): {CATALOGUE[code].title}" if code else report.verdict


def _claims(report: AuditReport) -> Iterator[str]:
    """Why that is said, and the setting to change."""
    code = report.findings[-1].code if report.findings else None
    if code:
        yield f"Step {report.findings[-1].step}: {report.findings[-1].evidence[0].why}"
        yield f"To mend it: {CATALOGUE[code].setting}"
    if report.error:
        yield f"The audit stopped before its end: {report.error}"


def _evidence(report: AuditReport) -> Iterator[tuple[str, str, str, str]]:
    for evidence in report.findings[-1].evidence if report.findings else ():
        share = "certain" if evidence.certain else f"{evidence.explained:.1%}"
        yield evidence.code, CATALOGUE[evidence.code].title, share, evidence.why


def _settings(report: AuditReport) -> Iterator[tuple[str, str, str]]:
    """Name and both sides' values; those that both state and that differ first."""
    if len(report.said) < 2:
        return
    ours, theirs = (dict(one.settings) for one in report.said[:2])
    names = sorted({*ours, *theirs}, key=lambda name: (not _unlike(ours, theirs, name), name))
    for name in names:
        yield name, str(ours.get(name, "")), str(theirs.get(name, ""))


def _unlike(ours: dict[str, Any], theirs: dict[str, Any], name: str) -> bool:
    return name in ours and name in theirs and ours[name] != theirs[name]


def _floor(report: AuditReport) -> list[tuple[str, ...]]:
    """A row a statistic: its quantiles over the measured samples, in nats."""
    quantiles = report.floor.quantiles() if report.floor else {}
    return [(name, *(f"{value:.3g}" for value in row.values())) for name, row in quantiles.items()]
