"""A run looked over after the fact, ours or another framework's: what is not parity, and what nobody could look at.

In: a path. Out: a `Checkup`: one conclusion, an exit code, lines for a terminal, values for a machine. Nothing is
written there.

    path -> adapters.foreign: whose files?  -> observations -> the auditor -> Report   --+
         -> a run directory of ours: account.py, and weights to score with, if held    --+--> Checkup
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lockstep.adapters.foreign.audit import Report, passive
from lockstep.adapters.foreign.detection import read
from lockstep.adapters.foreign.own import FORMAT
from lockstep.cli.account import Account
from lockstep.errors import InputError, LockstepError, boundary, message
from lockstep.parity.evidence import Finding
from lockstep.parity.side import Reference
from lockstep.parity.verdict import verdict
from lockstep.trace.metrics import plain
from lockstep.trace.run import RunDirectory

Status = Literal["parity", "fault", "undetermined", "unjudged"]
"""``unjudged``: nothing contradicts itself, and whether the two sides differ by much could not be said."""

WORST: tuple[Status, ...] = ("fault", "undetermined", "parity")


@dataclass(frozen=True, slots=True, eq=False)
class Checkup:
    """`account` is None for what is no run directory of ours."""

    report: Report
    account: Account | None

    @property
    def counts(self) -> dict[str, int]:
        """Steps by what they show; a step that only has broken series is undetermined."""
        report = self.report
        found: dict[int, Status] = dict.fromkeys(report.broken, "undetermined")
        for finding in report.findings:
            found[finding.step] = "fault" if finding.status == "fault" else "undetermined"
        judged = set(report.differences) - set(found) if report.judged else set[int]()
        counts = {status: list(found.values()).count(status) for status in ("fault", "undetermined")}
        rest = report.coverage.steps - len(found) - len(judged)
        return {"steps": report.coverage.steps, "parity": len(judged), **counts, "unjudged": max(rest, 0)}

    @property
    def status(self) -> Status:
        counts = self.counts
        for status in WORST:
            if counts[status]:
                return status
        return "unjudged"

    @property
    def partial(self) -> bool:
        """Whether something that the run wrote could not be read."""
        return bool(self.damaged or self.report.stopped)

    @property
    def damaged(self) -> int:
        """Files and lines that are lost."""
        return self.report.damaged + (len(self.account.unread) if self.account else 0)

    @property
    def exit_code(self) -> int:
        """1: a fault, or a difference that nothing explains; 2: none, as far as the files can be read; else 0."""
        if self.status in ("fault", "undetermined"):
            return 1
        return 2 if self.partial or not self.report.coverage.steps else 0

    @property
    def verdict(self) -> str:
        """One line: the first thing that moved, why, and what to change."""
        return f"{self._conclusion()}{self._reservation()}"

    @property
    def first(self) -> Finding | None:
        """The first step's fault, or if none has a name the first difference."""
        faults = [finding for finding in self.report.findings if finding.status == "fault"]
        return next(iter([*faults, *self.report.findings]), None)

    def plain(self) -> dict[str, Any]:
        """All of it as values of JSON."""
        account = self.account
        return plain(
            {
                "verdict": self.verdict,
                "status": self.status,
                "exit_code": self.exit_code,
                "counts": self.counts,
                "partial": self.partial,
                "run": account.plain() if account else None,
                "audit": self.report.plain(),
            }
        )

    def _conclusion(self) -> str:
        report, counts, first = self.report, self.counts, self.first
        steps = counted(counts["steps"], "step")
        if first is not None:
            more = len(report.findings) - 1
            told = self.account.told.get(first.step) if self.account and first.status != "fault" else None
            beside = f". Beside the run, with its weights at hand, it was: {told}" if told else ""
            rest = f" ({more} more findings)" if more else ""
            return f"step {first.step}: {verdict(first)}{beside}{rest}"
        if report.broken:
            step, count = next(iter(report.broken.items()))
            return f"step {step}: undetermined: {count} samples have two series that cannot be subtracted"
        if not counts["steps"]:
            return "unjudged: no step could be read"
        tokens = {"tokens": float(report.coverage.tokens_comparable)}
        if counts["parity"]:
            return f"{verdict(Finding('parity', 0, figures=tokens))}, in {counts['parity']} of {steps}"
        if report.differences:
            far = max(figures["max"] for figures in report.differences.values())
            return (
                f"unjudged: no contradiction in {steps}; the two sides differ by up to {far:.3g} nats, "
                "and without a noise floor nobody can say if that is much"
            )
        why = report.allows["mismatch"].why
        return f"unjudged: no contradiction in {steps}, but nothing could be compared: {why}"

    def _reservation(self) -> str:
        if not self.partial:
            return ""
        cut = (
            "the reading broke off"
            if self.report.stopped
            else counted(self.damaged, "file or line", "files or lines") + " could not be read"
        )
        return f" - of a part of the run: {cut}"


def examine(path: Path) -> Checkup:
    """Read all of a run once. Raises `InputError` for a path that holds no run that is known."""
    if (path / "config.toml").is_file() and (path / "manifest.json").is_file() and not _begun(path):
        rule, do = "a checkup looks at recorded rollouts", "Wait until the run has taken a step"
        expected = "a rollouts/ or parity/ folder"
        raise InputError(message(f"run directory ({path})", rule, got="no step", expected=expected, do=do))
    run = read(path)
    account = Account.of(path) if run.name == FORMAT.name else None
    return Checkup(passive(run, reference=_reference(path, account)), account)


def _begun(path: Path) -> bool:
    """Whether a step of the run was taken or refused; else its folder holds nothing that anybody would know."""
    return any((path / name).is_dir() for name in ("rollouts", "parity"))


def _reference(path: Path, account: Account | None) -> Reference | None:
    """Who can score the tokens again with the weights that lie in a run directory of ours."""
    if account is None:
        return None
    from lockstep.pipeline.stored import StoredReference

    try:
        with boundary("reading"):
            return StoredReference(RunDirectory(path))
    except LockstepError as cause:
        account.unread.append(f"no weights to score with: {cause}")
        return None


def counted(count: int, one: str, many: str = "") -> str:
    """The number, and the word for so many."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def by_reason(skipped: Mapping[str, str]) -> dict[str, list[str]]:
    """Probes that could not look, by the reason."""
    found: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        found.setdefault(reason, []).append(name)
    return found
