"""One audit of two sides that are alive: draw with one, score with the other, through real weight updates.

In: an engine, a scorer, a publisher, a workload. Out: a `Finding` a step; the floor that it is judged by.

    floor requests -> engine -> tokens, scored twice by honest computations -> Floor
    step 1: requests -> engine -> samples -> scorer -> Observation -> Auditor
    step n: a training step on the samples -> new weights -> both sides -> as step 1
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from lockstep.adapters.engines.publisher import Publisher
from lockstep.adapters.engines.workload import Workload
from lockstep.errors import InputError, message
from lockstep.parity.auditor import Auditor, difference
from lockstep.parity.breakdown import Breakdown
from lockstep.parity.evidence import Finding
from lockstep.parity.floor import SCALE, Floor
from lockstep.parity.observation import Observation, Sample, Statement
from lockstep.parity.probe import Look
from lockstep.parity.report import AuditReport
from lockstep.parity.side import Subject
from lockstep.pipeline.reference import NativeReference

Announce = Callable[[str], None]


class Scorer(Protocol):
    """The side that only scores."""

    def state(self) -> Statement: ...

    def score(self, samples: Sequence[Sample]) -> list[np.ndarray]: ...

    def update(self, version: int) -> None: ...


@dataclass(eq=False)
class Audit:
    """Two sides under one workload. `scale`: how many times the measured noise an honest pair may have."""

    engine: Subject
    scorer: Scorer
    publisher: Publisher
    workload: Workload
    announce: Announce = lambda _: None
    scale: float = SCALE
    floor: Floor | None = None
    observations: list[Observation] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    _noise: list[np.ndarray] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """How many there are: one, if new weights cannot be sent to the engine."""
        return self.workload.steps if "update" in self.engine.can else 1

    def run(self) -> Iterator[Finding]:
        """A finding a step, until one is not parity. Raises `LockstepError` if a side fails."""
        if "sample" not in self.engine.can:
            raise InputError(
                message("audit (first side)", "it draws the tokens", got="an engine that only scores",
                        expected="one that draws", do="Put the engine first and the scorer second")
            )  # fmt: skip
        self.announce("noise floor: drawing")
        self.floor = self._measured()
        auditor = Auditor(self._reference, self.engine, self.floor)
        for step in range(1, self.steps + 1):
            if step > 1:
                self.announce(f"step {step}: new weights")
                self._advance()
            self.announce(f"step {step}: drawing and scoring")
            seen = self._observe(step)
            self.observations.append(seen)
            self.announce(f"step {step}: comparing")
            if step > 1:
                auditor.floor = self.floor = self._grown(seen.comparable)
            finding = auditor.look(seen)
            self.findings.append(finding)
            yield finding
            if finding.status != "parity":
                return

    def report(self, engine: str, scorer: str, facts: Mapping[str, Any], error: str = "") -> AuditReport:
        """What has been seen so far; `error`: why it is not all."""
        last = self.observations[-1] if self.observations else None
        breakdown = None
        if last is not None and self.findings and len(self.findings) == len(self.observations) and last.comparable:
            look = Look(last, self._reference, None, self.observations[:-1], self.floor.grain if self.floor else 0.0)
            breakdown = Breakdown.of(look, self.findings[-1])
        return AuditReport(
            engine, scorer, tuple(self.findings),
            (last.engine, last.trainer) if last else (),
            [difference(sample) for sample in last.comparable] if last else (),
            self.floor, breakdown, {**self.workload.plain(), "steps": self.steps, **facts}, error,
        )  # fmt: skip

    def _observe(self, step: int) -> Observation:
        requests = self.workload.requests(self.publisher.model.tokenizer, step)
        # Whoever draws was told the newest weights: its own labels are evidence, not what the scorer goes by.
        drawn = [replace(s, versions=None, spans=()) for s in self.engine.sample(requests)]
        whole = [s for s in drawn if len(s.token_ids)]
        series = dict(zip((s.id for s in whole), self.scorer.score(whole), strict=True))
        samples = [replace(s, trainer=series.get(s.id)) for s in drawn]
        return Observation(
            step=step,
            samples=samples,
            engine=self.engine.state(),
            trainer=self.scorer.state(),
            expected=self.publisher.statement(),
            requests=requests,
        )

    def _advance(self) -> None:
        number = self.publisher.learn(self.observations[-1].samples)
        self.engine.update(number)
        self.scorer.update(number)

    @cached_property
    def _reference(self) -> NativeReference:
        """In the scorer's dtype: what the scorer should say."""
        dtype: Any = "float32" if self._dtype(self.scorer) == "float32" else "bfloat16"
        return NativeReference(self.publisher.model.arch, self.publisher.held(dtype), None, dtype)

    def _measured(self) -> Floor:
        """What rounding does to this model on tokens that the engine draws.

        Measured in bfloat16 against float32; if both sides compute in float32, between two implementations of that.
        """
        drawn = [
            replace(s, support=None, spans=(), versions=None)
            for batch in range(self.workload.floor)
            for s in self.engine.sample(self.workload.requests(self.publisher.model.tokenizer, -1 - batch))
            if len(s.token_ids)
        ]
        self._noise = self._honest(drawn)
        return Floor.of(self._noise, self.scale)

    def _grown(self, samples: Sequence[Sample]) -> Floor:
        """The floor at new weights, which may be noisier: times the growth that a step's own tokens show."""
        if not samples:
            return Floor.of(self._noise, self.scale)
        now, then = (float(np.abs(np.concatenate(d)).mean()) for d in (self._honest(samples), self._noise))
        growth = max(now / then, 1.0) if then > 0 else 1.0
        return Floor.of([d * growth for d in self._noise], self.scale)

    def _honest(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """float64 [T] each: two honest computations of the logprobs of these tokens, one less the other."""
        plain = [replace(s, params=replace(s.params, **_UNCUT)) for s in samples if s.params is not None]
        if {self._dtype(self.engine), self._dtype(self.scorer)} == {"float32"}:
            return self._fine(plain)
        return self._reference.calibration(plain)

    def _fine(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """float64 [T] each: Lockstep's float32 logprobs less those of transformers."""
        from lockstep.adapters.engines.transformers_scorer import Transformers

        with Transformers(self.publisher, {"dtype": "float32"}) as other:
            pairs = zip(self._reference.score(samples), other.score(samples), strict=True)
            return [ours.astype(np.float64) - theirs for ours, theirs in pairs]

    @staticmethod
    def _dtype(side: Subject | Scorer) -> object:
        return side.state().settings.get("dtype")


_UNCUT: Mapping[str, Any] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
