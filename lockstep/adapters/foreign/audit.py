"""The passive audit of a foreign run: what its columns allow is looked at, what they do not is said.

In: a `ForeignRun`; somebody who can score its tokens again and the measured noise floor, if there are any. Out: a
`Report`: coverage, permissions, the findings that count, and what could not be read.

    observations -> coverage                                     counted, judged by nobody
                 -> Auditor -> a contradiction in the records    counts always
                            -> the two sides differ              counts only against a floor, or bit by bit on an exact
                                                                 pair: what honest engines differ by is in no file
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lockstep.adapters.foreign.coverage import Coverage
from lockstep.adapters.foreign.permission import Permission, permissions
from lockstep.adapters.foreign.run import ForeignRun
from lockstep.errors import LockstepError
from lockstep.numerics import ratio_metrics
from lockstep.parity.auditor import Auditor, difference
from lockstep.parity.evidence import Finding
from lockstep.parity.floor import Floor
from lockstep.parity.hypothesis import AS_STATED
from lockstep.parity.observation import Observation
from lockstep.parity.side import CannotAsk, Reference
from lockstep.parity.verdict import plain, verdict


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """`findings`: of steps that show a fault, or a difference that nothing explains. `judged`: steps whose two sides
    were held against a floor, or bit by bit; `differences`: of each step that has any, as they are, judged or not.

    `broken`: by step, how many samples have both series and yet cannot be subtracted. `skipped`: which probes could not
    look, and why. `gaps`: what could not be read, `damaged` of it because it is lost. `stopped`: the error that ended
    the reading; everything else is then of the steps before it.
    """

    name: str
    version: str | None
    path: Path
    coverage: Coverage
    allows: Mapping[str, Permission]
    findings: tuple[Finding, ...]
    judged: int
    differences: Mapping[int, Mapping[str, float]]
    broken: Mapping[int, int]
    skipped: Mapping[str, str]
    gaps: tuple[str, ...]
    damaged: int = 0
    stopped: str | None = None

    @property
    def failed(self) -> bool:
        """Whether a fault or an unexplained difference was found, series were broken, or the reading broke off."""
        return bool(self.findings) or bool(self.broken) or self.stopped is not None

    def lines(self) -> Iterator[str]:
        """The report in words, for a terminal."""
        version = f" ({self.version})" if self.version else ""
        yield f"{self.name}{version}: {self.path}"
        counts = self.coverage
        yield f"{counts.steps} steps, {counts.samples} samples, {counts.tokens} tokens"
        yield from (f"  {kind}: {permission}" for kind, permission in self.allows.items())
        yield from (f"step {finding.step}: {verdict(finding)}" for finding in self.findings)
        for step, count in self.broken.items():
            yield f"step {step}: {count} samples have a series of another length than their tokens, or not all finite"
        if self.differences and not self.judged:
            far = max((figures["max"] for figures in self.differences.values()), default=0.0)
            yield f"the two sides differ by up to {far:.3g} nats; without a noise floor nobody can say if that is much"
        yield from (f"not read: {gap}" for gap in self.gaps)
        if self.stopped is not None:
            yield f"stopped after {counts.steps} steps: {self.stopped}"

    def plain(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "format": self.name,
            "version": self.version,
            "path": str(self.path),
            "coverage": self.coverage.plain(),
            "allows": {kind: {"answer": p.answer, "why": p.why} for kind, p in self.allows.items()},
            "findings": [plain(finding) for finding in self.findings],
            "judged": self.judged,
            "differences": {str(step): dict(figures) for step, figures in self.differences.items()},
            "broken": {str(step): count for step, count in self.broken.items()},
            "skipped": dict(self.skipped),
            "gaps": list(self.gaps),
            "damaged": self.damaged,
            "stopped": self.stopped,
        }


def passive(
    run: ForeignRun, *, reference: Reference | None = None, floor: Floor | None = None, alpha: float = 1e-4
) -> Report:
    """Read all of a run once and look at it. Raises nothing for what the files hold: the report says where it stopped.

    `reference` scores the tokens again: without one the probes that ask for causes are skipped, and it stands in for a
    trainer whose logprobs are not there (`stood_in`). `floor` is what honest computations of the two sides differ by; a
    run that is exact needs none. `alpha`: false alarms, over the run.
    """
    floor = Floor.exact() if floor is None and run.exact else floor
    auditor = Auditor(reference, None, floor, alpha)
    coverage, judged, stopped = Coverage(), 0, None
    findings: list[Finding] = []
    skipped: dict[str, str] = {}
    differences: dict[int, Mapping[str, float]] = {}
    broken: dict[int, int] = {}
    try:
        for read in run.observations():
            coverage.add(read)
            observation = stood_in(read, reference)
            figures = _differences(observation)
            if figures:
                differences[observation.step] = figures
            judged += bool(figures) and floor is not None
            if count := sum(sample.paired and not sample.comparable for sample in read.samples):
                broken[read.step] = count
            finding = auditor.look(observation)
            skipped |= finding.skipped
            if _counts(finding, figures, floor):
                findings.append(finding)
    except LockstepError as cause:
        stopped = str(cause)
    allows = permissions(coverage, run.notes)
    gaps = (*run.left_out, *run.gaps.texts)
    return Report(
        run.name, run.version, run.path, coverage, allows, tuple(findings), judged, differences, broken, skipped, gaps,
        run.damaged + run.gaps.damaged, stopped,
    )  # fmt: skip


def stood_in(observation: Observation, reference: Reference | None) -> Observation:
    """With the reference's logprobs in the place of the trainer's, where no sample has these; if it can score them."""
    samples = observation.samples
    lone = [s for s in samples if s.sampler is not None and len(s.sampler) == len(s.token_ids) > 0]
    if reference is None or not lone or any(sample.trainer is not None for sample in samples):
        return observation
    try:
        scores = {id(s): score for s, score in zip(lone, reference.score(lone, AS_STATED), strict=True)}
    except CannotAsk:
        return observation
    return replace(observation, samples=[replace(s, trainer=scores.get(id(s))) for s in samples])


def _counts(finding: Finding, figures: Mapping[str, float], floor: Floor | None) -> bool:
    """Whether a finding is about the run, and not about what its files lack: a contradiction, or more than a floor."""
    if finding.status == "fault" and finding.evidence[0].certain:
        return True
    return finding.status != "parity" and floor is not None and bool(figures)


def _differences(observation: Observation) -> dict[str, float]:
    """Statistics of trainer - sampler over the tokens of a step; empty if there are none."""
    far = [difference(sample) for sample in observation.comparable if sample.paired]
    if not far:
        return {}
    values = np.concatenate(far)
    sizes = np.abs(values)
    return {
        "tokens": float(len(values)),
        "differing": float(np.count_nonzero(values)),
        "mean": float(sizes.mean()),
        "p99": float(np.quantile(sizes, 0.99)),
        "max": float(sizes.max()),
        **ratio_metrics(values),
    }
