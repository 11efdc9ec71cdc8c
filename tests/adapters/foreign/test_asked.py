"""Parameters are those that were asked for: all of them, or none."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.adapters.foreign.asked import DECIDING, params, settings
from lockstep.adapters.foreign.row import Row
from lockstep.core import SamplingParams
from lockstep.errors import InputError

ALL = {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "min_p": 0.1, "repetition_penalty": 1.1}


def row(**tree: Any) -> Row:
    return Row("f (line 1)", tree)


def test_all_that_decides_a_logprob():
    expected = SamplingParams(temperature=0.7, top_p=0.9, top_k=20, min_p=0.1, repetition_penalty=1.1)
    assert params(row(**ALL)) == expected
    assert params(row(**ALL, presence_penalty=0.5, max_tokens=8, n=2, seed=7)) == SamplingParams(
        temperature=0.7, top_p=0.9, top_k=20, min_p=0.1, repetition_penalty=1.1, presence_penalty=0.5,
        max_tokens=8, n=2, seed=7,
    )  # fmt: skip


@pytest.mark.parametrize("missing", DECIDING)
def test_what_a_server_may_decide_is_not_filled_in(missing: str):
    assert params(row(**{k: v for k, v in ALL.items() if k != missing})) is None
    assert params(row(**{**ALL, missing: None})) is None


@pytest.mark.parametrize("name", ["bad_words", "logit_bias", "allowed_token_ids", "response_format"])
def test_what_is_not_read_is_not_ignored(name: str):
    assert params(row(**ALL, **{name: [1]})) is None
    assert params(row(**ALL, **{name: None})) is not None


@pytest.mark.parametrize("change", [{"temperature": -1.0}, {"top_p": 0.0}, {"temperature": float("nan")}, {"min_p": 2}])
def test_what_sampling_params_cannot_hold(change: dict[str, float]):
    assert params(row(**{**ALL, **change})) is None


def test_limits_that_ask_for_nothing():
    """`max_tokens=0` with `echo` scores a prompt; it decides no logprob."""
    assert params(row(**ALL, max_tokens=0, seed=-1)) == params(row(**ALL))


def test_minus_one_keeps_every_token():
    assert params(row(**{**ALL, "top_k": -1})).top_k == 0  # type: ignore[union-attr]


def test_settings_are_what_is_said():
    assert settings(row(temperature=0.7, top_k=None, seed=2**60 + 1, model="m")) == {
        "temperature": 0.7,
        "seed": 2**60 + 1,
    }


@pytest.mark.parametrize("bad", ["0.7", True, [0.7]])
def test_wrong_types_name_the_column(bad: Any):
    with pytest.raises(InputError, match="column temperature is not as this format has it"):
        params(row(**{**ALL, "temperature": bad}))


@given(
    values=st.fixed_dictionaries(
        {name: st.none() | st.integers() | st.floats() for name in (*ALL, "seed", "max_tokens")}
    )
)
def test_any_numbers(values: dict[str, Any]):
    try:
        found = params(row(**values))
    except InputError as refused:
        assert str(refused).startswith("f (line 1): column ")
    else:
        assert found is None or found.temperature == values["temperature"]
