"""Sampling parameters: what they refuse, and that their words for adjustments are equal exactly if these are."""

from __future__ import annotations

import doctest
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep import core, sampling_params
from lockstep.core import Contract, SamplingParams
from lockstep.errors import ContractError, InputError

biases = st.dictionaries(st.integers(0, 9), st.sampled_from([-2.0, 0.5, 3.0]), max_size=4)
words = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple), max_size=3)
params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1.0]),
    presence_penalty=st.sampled_from([0.0, 0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.5, -1.0]),
    repetition_penalty=st.sampled_from([1.0, 0.5, 1.1]),
    logit_bias=biases.map(lambda found: tuple(sorted(found.items()))),
    bad_words=words.map(tuple),
)


def test_the_example_in_the_docstring():
    failed, attempted = doctest.testmod(sampling_params)
    assert (failed, attempted) == (0, 1)


def test_core_gives_the_same_noun():
    assert core.SamplingParams is sampling_params.SamplingParams


def test_it_is_frozen_and_slotted():
    subject: Any = SamplingParams()
    assert set(SamplingParams.__slots__) == {f.name for f in fields(SamplingParams)}
    with pytest.raises(FrozenInstanceError):
        subject.seed = 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("presence_penalty", 2.1),
        ("frequency_penalty", float("nan")),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 2.1),
        ("logit_bias", ((5, 1.0), (5, 2.0))),
        ("logit_bias", ((6, 1.0), (5, 2.0))),
        ("logit_bias", ((-1, 1.0),)),
        ("logit_bias", ((5, float("inf")),)),
        ("logit_bias", ((5, float("nan")),)),
        ("logit_bias", ((5, -2e6),)),
        ("bad_words", ((1, 2), ())),
        ("bad_words", ((1, -2),)),
    ],
)
def test_out_of_range(name: str, value: Any):
    with pytest.raises(InputError, match=rf"sampling \({name}\): out of range"):
        SamplingParams(**{name: value})


def test_the_ends_of_the_ranges_are_inside():
    SamplingParams(presence_penalty=-2, frequency_penalty=2, repetition_penalty=2, logit_bias=((0, -1e6), (1, 1e6)))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, ""),
        ({"temperature": 0.5, "top_k": 3, "prompt_logprobs": True}, ""),
        ({"presence_penalty": 1}, "presence_penalty=1.0"),
        ({"frequency_penalty": -0.5, "repetition_penalty": 1.1}, "repetition_penalty=1.1,frequency_penalty=-0.5"),
        ({"logit_bias": ((3, 1), (7, -100.0))}, "logit_bias=3:1.0|7:-100.0"),
        ({"bad_words": ((4,), (1, 2))}, "bad_words=1.2|4"),
    ],
)
def test_adjustments_in_words(changes: dict[str, Any], text: str):
    assert SamplingParams(**changes).adjustments == text
    assert SamplingParams(**changes).adjusts == bool(text)


def test_a_long_list_is_a_digest_of_all_of_it():
    many = SamplingParams(logit_bias=tuple((i, 0.5) for i in range(300)))
    other = replace(many, logit_bias=(*many.logit_bias[:-1], (299, 0.25)))
    assert many.adjustments.startswith("logit_bias=300#")
    assert len(many.adjustments) < 40
    assert many.adjustments != other.adjustments


def meaning(p: SamplingParams) -> tuple[object, ...]:
    penalties = (p.presence_penalty, p.frequency_penalty, p.repetition_penalty)
    return penalties, p.logit_bias, frozenset(p.bad_words)


@given(params, params)
def test_equal_words_are_equal_adjustments(a: SamplingParams, b: SamplingParams):
    assert (a.adjustments == b.adjustments) == (meaning(a) == meaning(b))
    assert (a.adjustments == "") == (not a.adjusts)


@given(params, params)
def test_contracts_of_unlike_adjustments_cannot_be_compared(a: SamplingParams, b: SamplingParams):
    first, second = (Contract.of(replace(p, temperature=1.0), "float32", (0,)) for p in (a, b))
    if a.adjustments == b.adjustments:
        first.require(second)
    else:
        with pytest.raises(ContractError, match=r"logprobs \(adjustments\)"):
            first.require(second)


@given(params)
def test_a_greedy_choice_among_adjusted_logits_is_processed(p: SamplingParams):
    contract = Contract.of(replace(p, temperature=0.0), "float32", (0,))
    assert contract.mode == ("processed" if p.adjusts else "raw")
    assert (contract.temperature, contract.support, contract.adjustments) == (1.0, "full", p.adjustments)


@given(params)
def test_a_prompt_is_scored_as_it_is(p: SamplingParams):
    contract = Contract.of_prompt(replace(p, top_k=3, prompt_logprobs=True), "float32", (4,))
    assert contract == Contract("raw" if p.greedy else "processed", p.temperature or 1.0, "full", "float32", (4,))
