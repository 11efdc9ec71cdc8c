"""Which columns of an observation a run fills, counted: how much of it an audit can look at.

In: observations. Out: `Coverage`, a table of samples and tokens that have each column. It judges nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from lockstep.parity.observation import Observation, Sample, Statement

COLUMNS = (
    "prompt_ids", "token_ids", "sampler", "trainer", "again", "current", "reference", "drawn_prompt_ids", "drawn_ids",
    "params", "group", "versions", "path", "num_cached", "spans", "support", "mask", "ratio", "finish_reason", "text",
)  # fmt: skip
"""Of `Sample`; the id is always there."""

SIDES = ("engine", "trainer", "expected")


@dataclass(slots=True)
class Coverage:
    """Counts so far. `samples_with` and `tokens_with` by column; a column that is empty counts as not there.

    `pairs`: samples with both series; `comparable` those of them that can be subtracted, `unequal` and `not_finite` the
    reasons why others cannot. `stated`: settings and labels by side. `metrics`: names that were reported.
    """

    steps: int = 0
    samples: int = 0
    tokens: int = 0
    pairs: int = 0
    comparable: int = 0
    tokens_comparable: int = 0
    unequal: int = 0
    not_finite: int = 0
    samples_with: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COLUMNS, 0))
    tokens_with: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COLUMNS, 0))
    stated: dict[str, set[str]] = field(default_factory=lambda: {side: set() for side in SIDES})
    metrics: set[str] = field(default_factory=set)

    def add(self, observation: Observation) -> None:
        """Count one more step."""
        self.steps += 1
        for sample in observation.samples:
            self._count(sample)
        for side in SIDES:
            self.stated[side] |= _said(getattr(observation, side))
        self.metrics |= observation.metrics.keys()

    @property
    def table(self) -> list[tuple[str, int, int]]:
        """(column, samples that have it, tokens of these), every column, in the order of `Sample`."""
        return [(name, self.samples_with[name], self.tokens_with[name]) for name in COLUMNS]

    def plain(self) -> Mapping[str, object]:
        """All of it as plain values."""
        return {
            "steps": self.steps,
            "samples": self.samples,
            "tokens": self.tokens,
            "pairs": self.pairs,
            "comparable": self.comparable,
            "tokens_comparable": self.tokens_comparable,
            "unequal": self.unequal,
            "not_finite": self.not_finite,
            "columns": {name: {"samples": samples, "tokens": tokens} for name, samples, tokens in self.table},
            "stated": {side: sorted(names) for side, names in self.stated.items()},
            "metrics": sorted(self.metrics),
        }

    def _count(self, sample: Sample) -> None:
        count = len(sample.token_ids)
        self.samples += 1
        self.tokens += count
        for name in COLUMNS:
            if _there(getattr(sample, name)):
                self.samples_with[name] += 1
                self.tokens_with[name] += count
        series = [s for s in (sample.sampler, sample.trainer) if s is not None]
        self.unequal += any(len(s) != count for s in series)
        self.not_finite += not all(bool(np.isfinite(s).all()) for s in series)
        if len(series) == 2:
            self.pairs += 1
            if sample.comparable:
                self.comparable += 1
                self.tokens_comparable += count


def _there(value: object) -> bool:
    if isinstance(value, np.ndarray):
        return len(value) > 0
    return value is not None and value not in ("", ())


def _said(statement: Statement) -> set[str]:
    """Names of what a side says of itself."""
    labels = {"number": statement.number, "digest": statement.digest, "tensors": statement.tensors or None}
    return set(statement.settings) | {name for name, value in labels.items() if value is not None}
