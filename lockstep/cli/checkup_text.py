"""A checkup in words: a table of what is not parity, then the notes, and the verdict on the last line.

In: a `Checkup`. Out: text on stdout.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lockstep.cli.checkup import Checkup, by_reason, counted
from lockstep.parity.verdict import verdict


def show(found: Checkup, output: Path | None) -> None:
    """The table of what is not parity, what could not be looked at, and the verdict on the last line."""
    console = Console()
    report, counts = found.report, found.counts
    version = f" ({report.version})" if report.version else ""
    console.print(f"{report.name}{version}: {report.path}", markup=False, highlight=False, soft_wrap=True)
    shown = ", ".join(f"{count} {status}" for status, count in counts.items() if count and status != "steps")
    size = f"{report.coverage.samples} samples, {report.coverage.tokens} tokens"
    console.print(f"{counted(counts['steps'], 'step')}: {shown or 'none read'}; {size}", highlight=False)
    steps = Table(box=None, pad_edge=False)
    for heading in ("step", "what", "differing", "largest", "why"):
        steps.add_column(heading, overflow="fold", justify="right" if heading in ("differing", "largest") else "left")
    for row in _rows(found):
        steps.add_row(*row)
    if steps.row_count:
        console.print(steps, markup=False)
    if found.account is None:
        console.print(_allowed(found), markup=False)
    for line in _notes(found, output):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    print(found.verdict)


def _rows(found: Checkup) -> Iterator[tuple[str, str, str, str, str]]:
    """Step by step, only what is not parity: what is seen now, what gates decided, what was seen at the time."""
    now = {finding.step: verdict(finding) for finding in found.report.findings}
    for finding in found.report.findings:
        figures, first = finding.figures, finding.evidence[0] if finding.status == "fault" else None
        tokens = figures.get("tokens", 0.0)
        differing = f"{figures['differing']:.0f}/{tokens:.0f}" if tokens else ""
        largest = f"{figures['max']:.3g}" if tokens else ""
        what = f"{first.code} ({first.layer})" if first else finding.status
        yield str(finding.step), what, differing, largest, first.why if first else "no cause explains it"
    for step, count in found.report.broken.items():
        yield str(step), "broken", "", "", f"{count} samples have a series of another length, or not all finite"
    if found.account is None:
        return
    for refusal in found.account.refusals:
        yield str(refusal.step), f"gate: {refusal.outcome}", "", "", refusal.reason
    for line in found.account.recorded:
        if line["verdict"] != now.get(line["step"]):
            yield str(line["step"]), "beside the run", "", "", line["verdict"]


def _allowed(found: Checkup) -> Table:
    """By kind of probe, whether the columns of a foreign run allow it."""
    table = Table(box=None, pad_edge=False)
    for heading in ("looked for", "allowed", "why"):
        table.add_column(heading)
    for kind, permission in found.report.allows.items():
        table.add_row(kind, permission.answer, permission.why)
    return table


def _notes(found: Checkup, output: Path | None) -> Iterator[str]:
    """What could not be looked at or read, how the run ended, and where reports lie."""
    report, account = found.report, found.account
    for reason, probes in by_reason(report.skipped).items():
        named = reason.startswith(f"{probes[0]}: ") and len(probes) == 1
        yield f"not looked at: {reason if named else ', '.join(probes) + ' - ' + reason}"
    yield from (f"not read: {gap}" for gap in (*report.gaps, *(account.unread if account else ())))
    if report.stopped is not None:
        yield f"the reading broke off after {counted(report.coverage.steps, 'step')}: {report.stopped}"
    if account is not None:
        yield from (f"here {change}: bits may differ" for change in account.changes)
        yield f"the run: {account.outcome or 'not ended'}, started {account.started}, ended {account.ended}"
        yield f"its report: {account.report or 'none was written'}"
    if output is not None:
        yield f"this report: {output}"
