"""What a run directory proves: parity, accuracy, refusals, times - or that it does not.

In: a run directory, also of a run that was killed, refused or is still going. Out: one `Facts`, the verdict in words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lockstep.dashboard.units import count, exact, wilson
from lockstep.trace import Refusal, RunDirectory

Standing = Literal["proved", "refused", "unproved", "empty"]


@dataclass(frozen=True, slots=True)
class Parity:
    """What the gate compared over all steps; `differing` steps have a token whose bits differ."""

    steps: int
    tokens: int
    worst: float
    unmeasured: tuple[int, ...]
    differing: tuple[int, ...]

    @classmethod
    def of(cls, lines: Sequence[Mapping[str, Any]]) -> Parity:
        """Read every line; one without a count of compared tokens proves nothing and is listed as unmeasured."""
        unmeasured, differing, tokens, worst = [], [], 0, 0.0
        for line in lines:
            number, value = line.get("parity/num_tokens") or 0, line.get("parity/max")
            if not number or not math.isfinite(number) or value is None:
                unmeasured.append(line["step"])
                continue
            tokens += int(number)
            if value != 0 or line.get("parity/frac_differing"):
                differing.append(line["step"])
            worst = math.nan if math.isnan(value) or math.isnan(worst) else max(worst, value)
        return cls(len(lines), tokens, worst, tuple(unmeasured), tuple(differing))

    @property
    def exact(self) -> bool:
        """Every step compared tokens, and every token agreed."""
        return self.tokens > 0 and not self.unmeasured and not self.differing


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Held-out accuracy after `step` steps over `tasks` problems (0: not recorded)."""

    step: int
    value: float
    tasks: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """Its 95 % Wilson interval."""
        return wilson(round(self.value * self.tasks), self.tasks) if self.tasks else None


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything the report is made of."""

    name: str
    config: Mapping[str, Any]
    config_text: str
    manifest: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]
    accuracies: Sequence[Accuracy]
    parity: Parity
    refusal: Refusal | None  # the one that ended the run
    overcome: Sequence[Refusal]  # earlier ones, after which the run was resumed

    @classmethod
    def of(cls, run: RunDirectory) -> Facts:
        """Read a run. Raises `InputError` if its configuration or manifest is missing."""
        config, manifest = run.config_tree(), run.manifest()
        lines = [line for line in run.metrics() if "reward" in line]
        evaluated = [line for line in (*run.evaluations(), *run.metrics()) if line.get("eval/accuracy") is not None]
        refusals = run.refusals()
        last = lines[-1]["step"] if lines else 0
        final = refusals and (manifest.get("outcome") == "refused" or refusals[-1].step > last)
        return cls(
            name=run.path.resolve().name,
            config=config,
            config_text=run.config_file.read_text(encoding="utf-8"),
            manifest=manifest,
            lines=lines,
            accuracies=[
                Accuracy(line["step"], line["eval/accuracy"], int(line.get("eval/num_tasks") or 0))
                for line in sorted(evaluated, key=lambda line: line["step"])
            ],
            parity=Parity.of(lines),
            refusal=refusals[-1] if final else None,
            overcome=refusals[:-1] if final else refusals,
        )

    def series(self, key: str) -> np.ndarray:
        """`key` float64 [steps]; NaN where it was not measured."""
        return np.array([math.nan if line.get(key) is None else line[key] for line in self.lines], np.float64)

    def latest(self, key: str) -> float | None:
        """The last step's `key` as it was measured, NaN and all; None if it was not."""
        return self.lines[-1].get(key) if self.lines else None

    @property
    def steps(self) -> np.ndarray:
        """Step numbers, int64 [steps]."""
        return np.array([line["step"] for line in self.lines], np.int64)

    @property
    def seconds(self) -> float:
        """Time spent in steps; a step without a time counts nothing."""
        return float(np.nansum(self.series("time/step"))) if self.lines else 0.0

    @property
    def standing(self) -> Standing:
        """Whether parity was proved at every step."""
        if self.refusal is not None:
            return "refused"
        if not self.lines:
            return "empty"
        return "proved" if self.parity.exact else "unproved"

    @property
    def outcome(self) -> str:
        """How the run ended, in words."""
        total = self.config.get("max_steps")
        done = f"{count(len(self.lines))} of {count(total)} steps" if total else f"{count(len(self.lines))} steps"
        ended = self.manifest.get("outcome") or "not finished: still running, or killed"
        return f"{ended}, {done}"

    @property
    def headline(self) -> str:
        """The verdict on the backend."""
        if self.refusal is not None:
            return f"Step {self.refusal.step} was {'held' if self.refusal.outcome == 'hold' else 'refused'}"
        if not self.lines:
            return "No step has been taken yet"
        if self.parity.exact:
            return f"Parity exactly 0.0 over {count(self.parity.tokens)} tokens"
        if self.parity.differing:
            steps = f"{len(self.parity.differing)} of {self.parity.steps} steps"
            return f"Parity broken in {steps}, by up to {exact(self.parity.worst)}"
        return f"Parity not measured in {count(len(self.parity.unmeasured))} of {count(self.parity.steps)} steps"

    @property
    def explanation(self) -> str:
        """The sentence under the verdict."""
        if self.refusal is not None:
            return self.refusal.reason
        if not self.lines:
            return "The directory holds a configuration and a manifest; figures appear with the first step."
        if self.parity.exact:
            many = f"all {count(self.parity.steps)} steps" if self.parity.steps > 1 else "the one step"
            return f"Every logprob the engine sampled with equals the trainer's, bit for bit, in {many}."
        gated = (self.config.get("parity") or {}).get("gate", True)
        which = ", ".join(map(str, (self.parity.differing or self.parity.unmeasured)[:8]))
        ungated = (
            "" if gated else " The gate was switched off (parity.gate = false), so these steps trained all the same."
        )
        return f"Do not read the curves below as on-policy: steps {which}.{ungated}"
