"""Choices for scenarios: from one stream that a seed and a purpose decide, within the limits that were asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.harness.draws import Draws

seeds = st.integers(0, 2**32)


def some(draws: Draws) -> list[object]:
    return [
        draws.integer(0, 10**6),
        draws.number(0.0, 1.0, 6),
        draws.choice("abcdefgh"),
        *draws.integers(4, 61),
        draws.chance(0.5),
    ]


@given(seeds, st.text(max_size=12))
def test_equal_seed_and_purpose_give_equal_choices(seed: int, purpose: str) -> None:
    assert some(Draws(seed, purpose)) == some(Draws(seed, purpose))


@given(seeds, seeds.filter(bool))
def test_another_seed_or_purpose_gives_another_stream(seed: int, other: int) -> None:
    first = Draws(seed, "requests of step 1").integers(16, 2**31)
    assert first != Draws(seed + other, "requests of step 1").integers(16, 2**31)
    assert first != Draws(seed, "requests of step 2").integers(16, 2**31)


@given(seeds, st.integers(-50, 50), st.integers(0, 50))
def test_an_integer_is_between_its_limits(seed: int, low: int, width: int) -> None:
    assert low <= Draws(seed, "limits").integer(low, low + width) <= low + width


@given(seeds)
def test_both_limits_of_an_integer_are_drawn(seed: int) -> None:
    draws = Draws(seed, "limits")
    assert {draws.integer(3, 5) for _ in range(200)} == {3, 4, 5}


@given(seeds, st.integers(0, 30), st.integers(1, 99))
def test_integers_are_as_many_as_asked_and_below_their_limit(seed: int, count: int, high: int) -> None:
    found = Draws(seed, "ids").integers(count, high)
    assert len(found) == count
    assert all(type(one) is int and 0 <= one < high for one in found)


@given(seeds, st.floats(-5, 5), st.floats(0, 5), st.integers(0, 4))
def test_a_number_is_rounded_and_no_further_out_than_rounding(seed: int, low: float, width: float, digits: int) -> None:
    found = Draws(seed, "number").number(low, low + width, digits)
    assert found == round(found, digits)
    assert low - 10**-digits <= found <= low + width + 10**-digits


@given(seeds)
def test_a_chance_of_none_never_comes_and_a_certain_one_always(seed: int) -> None:
    draws = Draws(seed, "chance")
    assert not any(draws.chance(0.0) for _ in range(50))
    assert all(draws.chance(1.0) for _ in range(50))


def test_a_chance_comes_as_often_as_it_says() -> None:
    draws = Draws(1, "chance")
    assert sum(draws.chance(0.3) for _ in range(5000)) / 5000 == pytest.approx(0.3, abs=0.03)


@given(seeds, st.lists(st.integers(), min_size=1, max_size=6))
def test_a_choice_is_one_of_the_options(seed: int, options: list[int]) -> None:
    assert Draws(seed, "choice").choice(options) in options


def test_every_option_is_chosen_sooner_or_later() -> None:
    draws = Draws(0, "choice")
    assert {draws.choice("abcd") for _ in range(100)} == set("abcd")


@given(seeds, st.integers(0, 20), st.integers(0, 20))
def test_distinct_numbers_are_different_and_ascending(seed: int, count: int, more: int) -> None:
    found = Draws(seed, "distinct").distinct(count, count + more)
    assert len(found) == count
    assert found == sorted(set(found))
    assert all(0 <= one < count + more for one in found)
