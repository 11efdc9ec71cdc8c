"""What a laboratory runs: decided by a seed, but for the fields that were given; small enough for its engine."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.core import SamplingParams
from lockstep.harness.faults import INJECTIONS
from lockstep.harness.laboratory import CONTEXT, PAGE
from lockstep.harness.networks import DTYPES, FAMILIES
from lockstep.harness.setup import Setup

seeds = st.integers(0, 10**6)
MANY = [Setup.random(seed) for seed in range(300)]


@given(seeds)
def test_a_seed_decides_everything(seed: int) -> None:
    assert Setup.random(seed) == Setup.random(seed)
    assert Setup.random(seed).seed == Setup.random(seed).params.seed == seed


@pytest.mark.parametrize("name", ["family", "dtype", "exact", "prompts", "prefix", "in_flight", "max_tokens_per_step"])
def test_what_seeds_differ_in(name: str) -> None:
    assert len({getattr(setup, name) for setup in MANY}) > 1


@given(seeds, st.sampled_from(FAMILIES), st.integers(1, 9), st.booleans())
def test_fields_that_are_given_are_kept(seed: int, family: str, prompts: int, in_flight: bool) -> None:
    found = Setup.random(seed, family=family, prompts=prompts, in_flight=in_flight)
    assert (found.family, found.prompts, found.in_flight) == (family, prompts, in_flight)


@given(seeds, st.integers(1, 9))
def test_a_given_field_leaves_the_others_alone(seed: int, prompts: int) -> None:
    assert Setup.random(seed, prompts=prompts) == replace(Setup.random(seed), prompts=prompts)


@given(seeds)
def test_exactness_can_be_given(seed: int) -> None:
    assert Setup.random(seed, exact=True).exact
    assert not Setup.random(seed, exact=False).exact


@given(seeds)
def test_a_pair_with_noise_is_bf16_and_draws_from_the_plain_distribution(seed: int) -> None:
    noisy = Setup.random(seed, exact=False)
    assert noisy.dtype == "bfloat16"
    assert not noisy.params.truncates and not noisy.params.adjusts


@given(seeds)
def test_a_setup_fits_its_engine(seed: int) -> None:
    drawn = Setup.random(seed)
    assert drawn.family in FAMILIES and drawn.dtype in DTYPES
    longest = drawn.prefix + drawn.tail + drawn.params.max_tokens
    assert longest <= CONTEXT
    assert -(-longest // PAGE) <= drawn.pages, "one sequence at least has room"
    assert drawn.prefix >= 2 * PAGE, "prompts meet in whole pages of the prefix cache"


@given(seeds)
def test_a_step_has_about_eight_completions(seed: int) -> None:
    drawn = Setup.random(seed)
    assert 8 + drawn.params.n <= drawn.prompts * drawn.params.n <= 8 + 3 * drawn.params.n


def test_exact_pairs_meet_every_filter_and_penalty() -> None:
    params = [setup.params for setup in MANY if setup.exact]
    assert any(p.top_k for p in params) and any(p.top_p < 1.0 for p in params)
    assert any(p.repetition_penalty > 1.0 for p in params) and any(p.frequency_penalty > 0.0 for p in params)
    assert any(not (p.truncates or p.adjusts) for p in params)


@pytest.mark.parametrize("code", INJECTIONS)
def test_what_a_fault_needs_are_fields_of_a_setup(code: str) -> None:
    wanted = INJECTIONS[code].setup
    found = Setup.random(7, **wanted)
    own = {field.name for field in fields(Setup)}
    assert {name: getattr(found if name in own else found.params, name) for name in wanted} == dict(wanted)


def test_plain_sampling_is_what_a_setup_has_without_a_seed() -> None:
    assert Setup().params == SamplingParams(max_tokens=12, n=4, ignore_eos=True)
    assert Setup().exact and not Setup().in_flight


@given(seeds, st.sampled_from([0.3, 0.9]), st.integers(1, 3))
def test_fields_of_the_sampling_may_be_given_alone(seed: int, temperature: float, n: int) -> None:
    found, free = Setup.random(seed, temperature=temperature, n=n), Setup.random(seed)
    assert found.params == replace(free.params, temperature=temperature, n=n)
    assert replace(found, params=free.params) == free
