"""NUM: one side rounds otherwise, in exactly the place that the fault names, and the other side never sees it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lockstep.harness.faults.numerics import INJECTIONS, LEVELS, int8, narrow_norm, narrow_rope
from lockstep.models import decoder
from lockstep.parity.hypothesis import Hypothesis, Rounding

CODES = [injection.code for injection in INJECTIONS]


ENGINE_SIDE = [code for code in CODES if code != "NUM06"]
PLACES = {
    "NUM01": Rounding(head="bfloat16"),
    "NUM02": Rounding(head="bfloat16"),
    "NUM03": Rounding(rope="bfloat16"),
    "NUM04": Rounding(norm="bfloat16"),
    "NUM05": Rounding(weights="int8"),
}


@pytest.mark.parametrize("code", ENGINE_SIDE)
def test_the_engine_rounds_from_the_onset_on_and_the_trainer_does_not(tell, same_bits, moved, code: str) -> None:
    story = tell(code)
    assert not any(moved(clean) for clean in story.clean)
    for seen in (story.at, story.later):
        assert moved(seen)
        for sample, honest in zip(seen.samples, story.explained(seen), strict=True):
            assert same_bits(sample.trainer, honest)


@pytest.mark.parametrize("code", ENGINE_SIDE)
def test_what_is_rounded_is_what_the_fault_names(tell, same_bits, code: str) -> None:
    story = tell(code)
    explained = story.explained(story.at, Hypothesis(rounding=PLACES[code]))
    assert all(same_bits(sample.sampler, series) for sample, series in zip(story.at.samples, explained, strict=True))


def test_every_other_engine_rounds_its_keys_and_values(tell, same_bits) -> None:
    story = tell("NUM05", seed=2)
    explained = story.explained(story.at, Hypothesis(rounding=Rounding(kv="int8")))
    assert all(same_bits(sample.sampler, series) for sample, series in zip(story.at.samples, explained, strict=True))


@pytest.mark.parametrize(("code", "said"), [("NUM01", "bfloat16"), ("NUM02", "float32")])
def test_a_narrow_head_is_said_or_kept_silent(tell, code: str, said: str) -> None:
    assert tell(code).at.engine.settings["head_dtype"] == said
    assert tell(code).before[0].engine.settings["head_dtype"] == "float32"


def test_another_cut_moves_the_last_bits_of_the_train_pass_alone(tell, same_bits, moved) -> None:
    story = tell("NUM06")
    assert all(sample.again is None for seen in story.before for sample in seen.samples)
    for seen in (story.at, story.later):
        assert not moved(seen)
        for sample in seen.samples:
            assert not same_bits(sample.again, sample.trainer)
            assert np.allclose(sample.again, sample.trainer, rtol=2.0**-21, atol=0)


@pytest.mark.parametrize("install", [narrow_rope, narrow_norm])
def test_functions_of_the_model_are_replaced_only_inside_the_engines_forward(opened, install) -> None:
    own = (decoder.rotation, decoder.rms_norm, decoder.operators_for)
    with opened() as lab:
        install(lab)
        lab.observe()
        assert (decoder.rotation, decoder.rms_norm, decoder.operators_for) == own


@given(
    arrays.arrays(
        np.float32,
        arrays.array_shapes(min_dims=2, max_dims=3, max_side=6),
        elements=st.floats(-100, 100, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3),
    )
)
def test_int8_is_off_by_half_a_level_of_its_row_at_most_and_keeps_the_largest(values: np.ndarray) -> None:
    rounded = int8(torch.from_numpy(values)).numpy()
    largest = np.abs(values).max(-1, keepdims=True)
    assert (np.abs(rounded - values) <= largest / LEVELS * 0.5001 + 1e-9).all()
    assert np.allclose(np.abs(rounded).max(-1, keepdims=True), largest, rtol=1e-6)
    assert np.allclose(int8(torch.from_numpy(rounded)).numpy(), rounded, rtol=1e-5, atol=1e-7)
    for row, alone in zip(values.reshape(-1, values.shape[-1]), rounded.reshape(-1, values.shape[-1]), strict=True):
        assert np.array_equal(int8(torch.from_numpy(row[None])).numpy()[0], alone)
        assert len(np.unique(alone)) <= 2 * LEVELS + 1
