"""An audit of two sides in words: the evidence, what the difference is made of, the verdict on the last line.

In: an `AuditReport`. Out: text on stdout.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from lockstep.parity.report import AuditReport


def show(report: AuditReport, output: Path | None) -> None:
    """Print it."""
    console = Console()
    console.print(f"{report.engine} against {report.scorer}", markup=False, highlight=False, soft_wrap=True)
    last = report.findings[-1] if report.findings else None
    if last is not None and last.evidence:
        evidence = Table(box=None, pad_edge=False)
        for heading in ("fault", "explains", "why"):
            evidence.add_column(heading, overflow="fold")
        for one in last.evidence:
            evidence.add_row(one.code, "certain" if one.certain else f"{one.explained:.1%}", one.why)
        console.print(evidence, markup=False)
    if last is not None and last.status != "parity" and report.breakdown is not None:
        parts = Table(box=None, pad_edge=False)
        parts.add_column("part of trainer - sampler")
        for heading in ("mean, nats", "mean size, nats"):
            parts.add_column(heading, justify="right")
        for row in report.breakdown.rows():
            parts.add_row(row["part"], f"{row['mean']:.4g}", f"{row['size']:.4g}")
        console.print(parts, markup=False)
    if report.floor is not None and not report.floor.is_exact:
        floor = (
            f"noise floor: {report.floor.grain:.3g} nats a token, measured on {report.floor.num_samples} completions"
        )
        console.print(floor, markup=False, highlight=False)
    if output is not None:
        console.print(f"report: {output / 'report.html'}", markup=False, highlight=False, soft_wrap=True)
    print(report.verdict)
