from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.adapters.engines.wire import drawn_fields, series_of
from lockstep.core import SamplingParams
from lockstep.parity.side import CannotAsk

SENT_OTHERWISE = {"prompt_logprobs"}  # scores are asked for by a request of their own


def test_every_field_is_sent_or_refused():
    """A new field of `SamplingParams` must be thought of here."""
    given_by = {
        "stop_token_ids": SamplingParams(stop_token_ids=(3,)),
        "logit_bias": SamplingParams(logit_bias=((5, -2.0),)),
    }
    for field in fields(SamplingParams):
        if field.name in SENT_OTHERWISE | {"stop", "bad_words"}:
            continue
        assert field.name in drawn_fields(given_by.get(field.name, SamplingParams())), field.name


@pytest.mark.parametrize("params", [SamplingParams(stop=("x",)), SamplingParams(bad_words=((1, 2),))])
def test_what_cannot_be_sent_is_not_left_out_in_silence(params):
    with pytest.raises(CannotAsk, match="cannot be sent"):
        drawn_fields(params)


def test_values_as_vllm_takes_them():
    sent = drawn_fields(SamplingParams(temperature=0.7, logit_bias=((5, -2.0),), stop_token_ids=(3, 4)))
    assert sent["logit_bias"] == {"5": -2.0} and sent["stop_token_ids"] == [3, 4] and sent["temperature"] == 0.7


@given(st.lists(st.none() | st.floats(-100, 0, width=32), max_size=9))
def test_holes_are_nan_and_everything_else_is_itself(values):
    series = series_of(values)
    assert series.dtype == np.float32 and len(series) == len(values)
    for got, value in zip(series, values, strict=True):
        assert np.isnan(got) if value is None else got == value
