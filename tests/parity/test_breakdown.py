from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lockstep.core import SamplingParams
from lockstep.parity.breakdown import REST, TRAINER, UNIT, Breakdown, on_grid
from lockstep.parity.evidence import Evidence, Finding
from lockstep.parity.hypothesis import AS_STATED, Hypothesis, Reading, Weights
from lockstep.parity.observation import Observation, Sample
from lockstep.parity.probe import IMPOSSIBLE, Look
from lockstep.parity.side import CannotAsk

RAW = Hypothesis(Reading("raw"))
OLD = Hypothesis(weights=Weights(version=1))


class Table:
    """A reference that knows a series for each set of flipped factors."""

    versions, names, parameters = (1, 2), (), ("embedding", "head")

    def __init__(self, **series: np.ndarray) -> None:
        self._series = {name: np.float32(values) for name, values in series.items()}

    def score(self, samples, hypothesis=AS_STATED):
        return [self._series["_".join(sorted(hypothesis.flipped)) or "stated"] for _ in samples]


def sample(sampler, trainer) -> Sample:
    ids = np.arange(len(sampler), dtype=np.int32)
    return Sample("a", ids[:1], ids, np.float32(sampler), np.float32(trainer), SamplingParams(temperature=0.7))


def fault(*evidence: Evidence) -> Finding:
    return Finding("fault", 1, evidence)


def told(code: str, hypothesis: Hypothesis, who: str = "sampler") -> Evidence:
    return Evidence(code, "because", 1.0, hypothesis=hypothesis, who=who)


def look(sampler, trainer, **series) -> Look:
    return Look(Observation(1, [sample(sampler, trainer)]), Table(**series))


def nats(units: np.ndarray) -> list[float]:
    return (units * UNIT).tolist()


def test_what_one_cause_explains_is_its_part_and_nothing_is_left():
    seen = look([-2.0, -4.0], [-1.0, -2.0], stated=[-1.0, -2.0], reading=[-2.0, -4.0])
    found = Breakdown.of(seen, fault(told("SEM01", RAW)))
    assert nats(found.parts["SEM01"]) == [1.0, 2.0]
    assert not found.parts[REST].any() and not found.parts[TRAINER].any()
    assert nats(found.total) == [1.0, 2.0]


def test_two_causes_are_taken_one_after_the_other():
    series = {"stated": [-1.0, -1.0], "reading": [-1.5, -1.5], "reading_weights": [-1.75, -1.75]}
    found = Breakdown.of(look([-1.75] * 2, [-1.0] * 2, **series), fault(told("SEM01", RAW), told("WGT01", OLD)))
    assert nats(found.parts["SEM01"]) == [0.5, 0.5]
    assert nats(found.parts["WGT01"]) == [0.25, 0.25]
    assert not found.parts[REST].any()


def test_a_second_cause_that_takes_nothing_away_has_no_part():
    series = {"stated": [-1.0], "reading": [-1.5], "reading_weights": [-1.5]}
    found = Breakdown.of(look([-1.75], [-1.0], **series), fault(told("SEM01", RAW), told("WGT01", OLD)))
    assert set(found.parts) == {TRAINER, "SEM01", REST}


def test_one_factor_is_flipped_once():
    other = told("SEM02", Hypothesis(Reading("divided")))
    found = Breakdown.of(look([-2.0], [-1.0], stated=[-1.0], reading=[-2.0]), fault(told("SEM01", RAW), other))
    assert set(found.parts) == {TRAINER, "SEM01", REST}


def test_a_trainer_that_deviates_is_the_trainers_part():
    found = Breakdown.of(look([-1.0], [-3.0], stated=[-1.0]), fault(told("SEM03", RAW, who="trainer")))
    assert set(found.parts) == {TRAINER, REST} and nats(found.parts[TRAINER]) == [-2.0]


def test_evidence_without_a_hypothesis_is_left_out():
    found = Breakdown.of(look([-1.5], [-1.0], stated=[-1.0]), fault(Evidence("PTH04", "it moves")))
    assert nats(found.parts[REST]) == [0.5]


def test_parts_that_do_not_sum_are_refused():
    total = on_grid(np.array([-1.0]))
    with pytest.raises(AssertionError, match="sum to its total"):
        Breakdown(total, {REST: total + 1})


def test_rows_end_with_the_total_and_their_units_sum_to_it():
    series = {"stated": [-1.0, -3.0], "reading": [-1.6, -2.9]}
    rows = Breakdown.of(look([-1.75, -2.8], [-1.1, -3.0], **series), fault(told("SEM01", RAW))).rows()
    assert rows[-1]["part"] == "total"
    assert sum(row["units"] for row in rows[:-1]) == rows[-1]["units"]
    assert rows[-1]["size"] == pytest.approx((0.65 + 0.2) / 2, abs=1e-6)


def test_without_a_reference_nothing_can_be_said():
    seen = Look(Observation(1, [sample([-1.0], [-2.0])]))
    with pytest.raises(CannotAsk):
        Breakdown.of(seen, fault())


def test_what_is_impossible_counts_as_thirty_nats():
    assert nats(on_grid(np.float32([-np.inf, np.nan, 0.0]))) == [-IMPOSSIBLE, -IMPOSSIBLE, 0.0]


finite = st.floats(-40, 0, width=32)


@given(arrays(np.float32, 16, elements=finite))
def test_the_grid_holds_ordinary_float32_logprobs_whole(values):
    back = on_grid(values) * UNIT
    coarse = np.abs(values) >= 2.0**-16  # 24 bits above 2**-40
    assert np.array_equal(back[coarse], values.astype(np.float64)[coarse])
    assert np.abs(back - values.astype(np.float64)).max() <= UNIT / 2


@given(*[arrays(np.float32, 9, elements=finite) for _ in range(5)])
def test_parts_always_sum_to_the_total_exactly(sampler, trainer, stated, reading, both):
    seen = look(sampler, trainer, stated=stated, reading=reading, reading_weights=both, weights=both)
    found = Breakdown.of(seen, fault(told("SEM01", RAW), told("WGT01", OLD)))
    assert np.array_equal(sum(found.parts.values()), on_grid(trainer) - on_grid(sampler))


def test_samples_follow_one_another():
    samples = [replace(sample([-1.0], [-2.0]), id=name) for name in "ab"]
    found = Breakdown.of(Look(Observation(1, samples), Table(stated=[-1.0])), Finding("parity", 1))
    assert nats(found.total) == [-1.0, -1.0]
