"""What a reference can be asked to assume: nothing flipped is the honest contract, and each factor moves numbers."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.parity.hypothesis import AS_STATED, Hypothesis, Keys, Layout, Reading, Rounding, Weights
from lockstep.parity.probe import Look
from lockstep.parity.side import CannotAsk

FACTORS: dict[str, Any] = {
    "reading": Reading("raw"),
    "weights": Weights(version=0),
    "keys": Keys(older=0, until={"a": 3}),
    "layout": Layout(shift=1, start={"a": 3}),
    "rounding": Rounding(head="bfloat16"),
    "prompts": {"a": (1, 2)},
}


class TestFlipped:
    def test_nothing_is_as_stated(self):
        assert AS_STATED.flipped == ()
        assert Hypothesis() == AS_STATED

    def test_the_table_of_this_test_knows_every_factor(self):
        assert list(FACTORS) == [f.name for f in fields(Hypothesis)]

    @pytest.mark.parametrize("name", FACTORS)
    def test_a_factor_is_named(self, name: str):
        assert Hypothesis(**{name: FACTORS[name]}).flipped == (name,)

    @given(st.sets(st.sampled_from(list(FACTORS))))
    def test_several_are_named_in_their_order(self, names):
        hypothesis = Hypothesis(**{name: FACTORS[name] for name in names})
        assert hypothesis.flipped == tuple(name for name in FACTORS if name in names)
        assert (hypothesis == AS_STATED) is (not names)

    @pytest.mark.parametrize("same", [Reading("processed"), Reading(scale=1.0, late=0)])
    def test_a_default_that_is_spelled_out_is_not_flipped(self, same: Reading):
        assert Hypothesis(reading=same, weights=Weights(stale=frozenset()), prompts={}).flipped == ()

    def test_nobody_changes_one(self):
        with pytest.raises(FrozenInstanceError):
            AS_STATED.reading.scale = 2.0  # type: ignore[misc]

    def test_defaults_are_not_shared(self):
        assert Keys().until is not Keys().until
        assert Layout().start is not Layout().start


def flips(look: Look) -> dict[str, Hypothesis]:
    """One factor each, in a way that must move the numbers of this run."""
    ids = [sample.id for sample in look.samples]
    prompt = tuple(reversed(look.samples[0].prompt_ids.tolist()))
    return {
        "scale": Hypothesis(Reading(scale=1.5)),
        "older weights": Hypothesis(weights=Weights(version=0)),
        "a stale layer": Hypothesis(weights=Weights(stale=frozenset({"layers.0.down"}), older=0)),
        "a stale head": Hypothesis(weights=Weights(stale=frozenset({"head"}), older=0)),
        "older keys": Hypothesis(keys=Keys(older=0, until=dict.fromkeys(ids, 20))),
        "another's keys": Hypothesis(keys=Keys(instead=dict.fromkeys(ids, (1, 2, 3, 4)))),
        "a shift": Hypothesis(layout=Layout(shift=1, start=dict.fromkeys(ids, 9))),
        "a neighbour": Hypothesis(layout=Layout(before=dict.fromkeys(ids, (5, 6, 7)))),
        "rounded head": Hypothesis(rounding=Rounding(head="bfloat16")),
        "rounded angles": Hypothesis(rounding=Rounding(rope="bfloat16")),
        "rounded norms": Hypothesis(rounding=Rounding(norm="bfloat16")),
        "int8 keys": Hypothesis(rounding=Rounding(kv="int8")),
        "int8 weights": Hypothesis(rounding=Rounding(weights="int8")),
        "another prompt": Hypothesis(prompts=dict.fromkeys(ids, prompt)),
    }


class TestWithARealReference:
    def test_nothing_flipped_has_the_bits_of_both_sides(self, clean: Look):
        for sample, honest in zip(clean.samples, clean.score(Hypothesis()), strict=True):
            assert sample.sampler is not None and sample.trainer is not None
            assert honest.tobytes() == sample.sampler.tobytes() == sample.trainer.tobytes()

    def test_each_factor_moves_the_numbers(self, clean: Look):
        for name, hypothesis in flips(clean).items():
            moved = clean.distance("sampler", clean.score(hypothesis))
            assert len(hypothesis.flipped) == 1, name
            assert (moved > 0).all(), name
            assert np.isfinite(moved).all(), name

    def test_no_two_factors_move_them_alike(self, clean: Look):
        series = {np.concatenate(clean.score(h)).tobytes() for h in flips(clean).values()}
        assert len(series) == len(flips(clean))

    def test_a_shift_of_every_row_is_nothing_to_rotary_angles(self, clean: Look):
        """Only distances matter to them: a shift counts from where it begins."""
        all_rows = Hypothesis(layout=Layout(shift=1, start={s.id: 0 for s in clean.samples}))
        some_rows = Hypothesis(layout=Layout(shift=1, start={s.id: 9 for s in clean.samples}))
        whole, part = (clean.distance("sampler", clean.score(h)).sum() for h in (all_rows, some_rows))
        assert whole < 1e-3 * part

    def test_samples_that_are_not_named_are_as_stated(self, clean: Look):
        first = clean.samples[0].id
        for hypothesis in (
            Hypothesis(layout=Layout(shift=1, start={first: 9})),
            Hypothesis(keys=Keys(older=0, until={first: 20})),
            Hypothesis(prompts={first: tuple(range(7))}),
        ):
            moved = clean.distance("sampler", clean.score(hypothesis))
            assert moved[0] > 0
            assert (moved[1:] < 1e-3 * moved[0]).all()

    @pytest.mark.parametrize(
        "hypothesis",
        [Hypothesis(weights=Weights(version=99)), Hypothesis(weights=Weights(name="nobody's"))],
    )
    def test_weights_that_are_not_held_cannot_be_asked_for(self, clean: Look, hypothesis: Hypothesis):
        with pytest.raises(CannotAsk, match="weights must be held"):
            clean.score(hypothesis)
