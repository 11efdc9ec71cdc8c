"""What is counted is what is there."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from lockstep.adapters.foreign.coverage import COLUMNS, Coverage
from lockstep.core import SamplingParams, Span, Support
from lockstep.parity.observation import Observation, Sample, Statement

IDS = np.array([3, 4], np.int32)


def series(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def sample(**changes: object) -> Sample:
    return Sample(**{"id": "a", "prompt_ids": np.array([1], np.int32), "token_ids": IDS, **changes})  # type: ignore[arg-type]


def counted(*samples: Sample, **changes: object) -> Coverage:
    coverage = Coverage()
    coverage.add(Observation(1, samples, **changes))  # type: ignore[arg-type]
    return coverage


def test_every_column_of_a_sample_is_counted():
    assert {"id", *COLUMNS} == {field.name for field in fields(Sample)}


def test_a_sample_with_everything():
    numbers = series(-1, -2)
    whole = sample(
        sampler=numbers, trainer=numbers, again=numbers, current=numbers, reference=numbers, drawn_prompt_ids=IDS,
        drawn_ids=IDS, params=SamplingParams(), group="g", versions=IDS, path=IDS, num_cached=0, spans=(Span(0, 2, 1),),
        support=Support(IDS, IDS), mask=np.ones(2, bool), ratio=1.0, finish_reason="stop", text="",
    )  # fmt: skip
    coverage = counted(whole)
    assert {name: samples for name, samples, _ in coverage.table} == {**dict.fromkeys(COLUMNS, 1), "text": 0}
    assert {tokens for name, _, tokens in coverage.table if name != "text"} == {2}
    assert (coverage.samples, coverage.tokens, coverage.pairs, coverage.comparable) == (1, 2, 1, 1)


def test_nothing_is_nothing():
    empty = np.empty(0, np.int32)
    coverage = counted(sample(prompt_ids=empty, token_ids=empty), sample(sampler=empty.astype(np.float32)))
    assert [samples for _, samples, _ in coverage.table if samples] == [1, 1]
    assert coverage.pairs == 0


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({"sampler": series(-1, -2), "trainer": series(-1, -2)}, (1, 1, 0, 0)),
        ({"sampler": series(-1), "trainer": series(-1, -2)}, (1, 0, 1, 0)),
        ({"sampler": series(-1, np.nan), "trainer": series(-1, -2)}, (1, 0, 0, 1)),
        ({"sampler": series(-np.inf)}, (0, 0, 1, 1)),
        ({"trainer": series(-1, -2)}, (0, 0, 0, 0)),
        ({}, (0, 0, 0, 0)),
    ],
)
def test_why_series_cannot_be_subtracted(changes: dict, counts: tuple[int, int, int, int]):
    coverage = counted(sample(**changes))
    assert (coverage.pairs, coverage.comparable, coverage.unequal, coverage.not_finite) == counts
    assert coverage.tokens_comparable == 2 * coverage.comparable


def test_what_the_sides_say():
    coverage = counted(engine=Statement("engine", {"temperature": 1.0}, 3), metrics={"kl": 0.5})
    coverage.add(Observation(2, (), trainer=Statement("trainer", digest="x", tensors={"a": "b"}), metrics={"loss": 1}))
    assert coverage.stated == {"engine": {"temperature", "number"}, "trainer": {"digest", "tensors"}, "expected": set()}
    assert coverage.metrics == {"kl", "loss"}
    assert coverage.steps == 2


def test_plain_values():
    plain = counted(sample(sampler=series(-1, -2))).plain()
    assert plain["columns"]["sampler"] == {"samples": 1, "tokens": 2}  # type: ignore[index]
    assert plain["columns"]["trainer"] == {"samples": 0, "tokens": 0}  # type: ignore[index]
    assert plain["stated"] == {"engine": [], "trainer": [], "expected": []}
