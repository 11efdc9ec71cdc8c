"""What a run directory says of itself beside its rollouts: how it ended, what was decided, what was found at the time.

In: a path. Out: an `Account`; each part that cannot be read is said and costs only itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lockstep.errors import LockstepError, boundary
from lockstep.trace import manifest
from lockstep.trace.metrics import plain, read_lines
from lockstep.trace.run import Refusal, RunDirectory

SILENT = ("machine.memory_gib", "machine.platform")
"""Differences that move no bit: the size of the memory, the release of the kernel."""


@dataclass(slots=True)
class Account:
    """`refusals`: what gates did not admit. `recorded`: the lines of parity/findings.jsonl, as the auditor beside the
    run wrote them. `changes`: what is other here than where the run was made. `unread`: what could not be read.
    """

    outcome: str | None = None
    started: str | None = None
    ended: str | None = None
    refusals: list[Refusal] = field(default_factory=list)
    recorded: list[Mapping[str, Any]] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    report: Path | None = None
    unread: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, path: Path) -> Account | None:
        """Of the run directory at `path`; None if it is none."""
        if not (path / "config.toml").is_file():
            return None
        run, found = RunDirectory(path), cls()
        with found._part():
            tree = run.manifest()
            found.outcome, found.started, found.ended = (tree.get(key) for key in ("outcome", "started", "ended"))
            changed = {name: pair for name, pair in manifest.changes(tree).items() if name not in SILENT}
            found.changes = [f"{name} is {now}, and was {then} in the run" for name, (then, now) in changed.items()]
        with found._part():
            found.refusals = run.refusals()
        with found._part():
            found.recorded = [_finding(line) for line in read_lines(path / "parity" / "findings.jsonl")]
        found.report = run.report_file if run.report_file.is_file() else None
        return found

    @property
    def told(self) -> dict[int, str]:
        """What the auditor beside the run said, by step; of two attempts at a step the later counts."""
        return {line["step"]: line["verdict"] for line in self.recorded}

    def plain(self) -> dict[str, Any]:
        """All of it as plain values."""
        return plain({name: getattr(self, name) for name in self.__dataclass_fields__})

    @contextmanager
    def _part(self) -> Iterator[None]:
        try:
            with boundary("reading"):
                yield
        except LockstepError as cause:
            self.unread.append(str(cause))


def _finding(line: Mapping[str, Any]) -> Mapping[str, Any]:
    """A line, if it is a finding: these keys are read from it. Raises `KeyError` and `TypeError`."""
    step, status, verdict = line["step"], line["status"], line["verdict"]
    if not (isinstance(step, int) and isinstance(status, str) and isinstance(verdict, str)):
        raise TypeError("a line of findings.jsonl has a step, a status and a verdict")
    return line
