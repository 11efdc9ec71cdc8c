"""Which weights run which rows: as the engine says, or as a hypothesis has it; never older ones after newer ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.core import Span
from lockstep.parity.hypothesis import AS_STATED, Hypothesis, Keys, Rounding, Weights
from lockstep.parity.observation import Sample
from lockstep.parity.side import CannotAsk
from lockstep.pipeline.reference.course import Course, Held, course_of

P = 4
HELD = range(6)


def sample(versions: Sequence[int] | None, spans: Sequence[tuple[int, int, int]] = (), count: int = 6) -> Sample:
    """`count` tokens after a prompt of four, or as many as there are versions."""
    said = None if versions is None else np.array(versions, np.int32)
    count = count if versions is None else len(versions)
    ids = np.arange(P + count, dtype=np.int32)
    return Sample("s", ids[:P], ids[P:], versions=said, spans=tuple(Span(*span) for span in spans))


def decided(course: Course, count: int = 6) -> list[Held]:
    """What decided each token."""
    return [course.held[number] for number in course.decided(P, count).tolist()]


def keys(course: Course, count: int = 6) -> list[Held]:
    """Whose keys are there in the end."""
    found = [Held(-1)] * (P + count - 1)
    for span in course.layout:
        found[span.start : span.end] = [course.held[span.version]] * (span.end - span.start)
    return found


rising = st.lists(st.integers(0, 4), min_size=1, max_size=9).map(sorted)


# -- as stated


@given(rising)
def test_tokens_that_carry_versions_are_decided_by_these(versions: list[int]) -> None:
    course = course_of(sample(versions), AS_STATED, HELD)
    assert decided(course, len(versions)) == [Held(version) for version in versions]
    assert {span.start for span in course.spans} == {0}, "each version writes its own keys"


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 2)), min_size=1, max_size=4))
def test_spans_are_followed_to_the_row(steps: list[tuple[int, int]]) -> None:
    ends = np.cumsum([P, *(length for length, _ in steps)]).tolist()
    numbers = np.cumsum([rise for _, rise in steps]).tolist()
    spans = [(a if i else 0, b, n) for i, ((a, b), n) in enumerate(zip(pairwise(ends), numbers, strict=True))]
    count = ends[-1] - P
    course = course_of(sample(None, spans, count), AS_STATED, range(20))
    stated = [next(n for a, b, n in spans if a <= row < b) for row in range(P + count - 1)]
    assert keys(course, count) == [Held(n) for n in stated]
    assert decided(course, count) == [Held(n) for n in stated[P - 1 :]]


def test_a_span_that_begins_anew_decides_only_what_was_not_decided_before() -> None:
    course = course_of(sample(None, [(0, 6, 1), (0, 9, 3)]), AS_STATED, HELD)
    assert decided(course) == [Held(1)] * 3 + [Held(3)] * 3
    assert keys(course) == [Held(3)] * 9, "it wrote all keys anew"


@pytest.mark.parametrize("versions", [None, [2, 2, 2]])
def test_who_says_nothing_useful_was_run_by_the_newest_weights_that_are_known(versions) -> None:
    silent = sample(None) if versions is None else Sample("s", np.arange(4), np.arange(6), versions=np.array(versions))
    newest = max(HELD) if versions is None else 2
    assert decided(course_of(silent, AS_STATED, HELD)) == [Held(newest)] * 6


# -- weights


@given(rising, st.integers(0, 5))
def test_a_version_runs_everything(versions: list[int], version: int) -> None:
    course = course_of(sample(versions), Hypothesis(weights=Weights(version=version)), HELD)
    assert course.spans == (Span(0, P + len(versions) - 1, 2 * version + 1),)
    assert set(decided(course, len(versions))) == {Held(version)}


def test_a_name_runs_everything_also_where_no_version_is_held() -> None:
    course = course_of(sample([0, 1]), Hypothesis(weights=Weights(name="masters")), ())
    assert decided(course, 2) == [Held(0, name="masters")] * 2


def test_stale_tensors_are_mixed_into_the_newest_version_of_the_sample() -> None:
    mixture = Hypothesis(weights=Weights(stale=frozenset({"norm"}), older=1))
    course = course_of(sample([2, 3]), mixture, HELD)
    assert decided(course, 2) == [Held(3, frozenset({"norm"}), 1)] * 2


@given(st.integers(0, 9), st.integers(0, 9))
def test_a_torn_swap_takes_its_rows_where_the_version_changes_and_leaves_the_others(start: int, length: int) -> None:
    end = min(start + length, 9)
    stated, torn = sample(None, [(0, 4, 0), (4, 9, 1)]), Held(1, frozenset({"norm"}), 0)
    hypothesis = Hypothesis(weights=Weights(version=1, stale=torn.stale, older=0, rows={"s": (start, end)}))
    if start < end and not start <= 4 <= end:
        with pytest.raises(CannotAsk, match="only become newer"):
            course_of(stated, hypothesis, HELD)
        return
    found = keys(course_of(stated, hypothesis, HELD))
    assert found == [torn if start <= row < end else Held(int(row >= 4)) for row in range(9)]


def test_rows_of_other_samples_are_none_of_its_business() -> None:
    weights = Weights(version=1, stale=frozenset({"norm"}), older=0, rows={"other": (0, 9)})
    assert decided(course_of(sample([0] * 6), Hypothesis(weights=weights), HELD)) == [Held(0)] * 6


def test_where_rows_are_meant_versions_of_tokens_go_on_over_the_keys_before_them() -> None:
    weights = Weights(version=1, stale=frozenset({"norm"}), older=0, rows={"other": (0, 9)})
    course = course_of(sample([0, 0, 1, 1, 1, 2]), Hypothesis(weights=weights), HELD)
    assert keys(course) == [Held(0)] * 5 + [Held(1)] * 3 + [Held(2)]
    assert decided(course) == [Held(0)] * 2 + [Held(1)] * 3 + [Held(2)]


# -- keys and rounding


@given(st.integers(0, 12))
def test_keys_below_a_position_are_older(until: int) -> None:
    course = course_of(sample([3] * 6), Hypothesis(keys=Keys(older=1, until={"s": until})), HELD)
    assert keys(course) == [Held(1)] * min(until, 9) + [Held(3)] * max(9 - until, 0)


def test_only_samples_with_older_keys_have_them() -> None:
    course = course_of(sample([3] * 6), Hypothesis(keys=Keys(older=1, until={"other": 5})), HELD)
    assert keys(course) == [Held(3)] * 9


@pytest.mark.parametrize("older", [3, 4])
def test_keys_that_are_not_older_cannot_be_asked(older: int) -> None:
    with pytest.raises(CannotAsk, match="keys are older"):
        course_of(sample([3] * 6), Hypothesis(keys=Keys(older=older, until={"s": 5})), HELD)


def test_without_any_weights_nothing_can_be_asked() -> None:
    with pytest.raises(CannotAsk, match="holds weights"):
        course_of(sample([0]), AS_STATED, ())


def test_rounded_weights_are_rounded_wherever_they_run_but_for_older_keys() -> None:
    rounding = Rounding(weights="int8")
    assert set(decided(course_of(sample([1, 2]), Hypothesis(rounding=rounding), HELD), 2)) == {
        Held(1, int8=True),
        Held(2, int8=True),
    }
    both = Hypothesis(rounding=rounding, keys=Keys(older=0, until={"s": 5}))
    assert keys(course_of(sample([2] * 6), both, HELD)) == [Held(0)] * 5 + [Held(2, int8=True)] * 4


# -- private numbers


@given(rising)
def test_private_numbers_rise_along_a_course_and_neighbours_differ(versions: list[int]) -> None:
    spans = course_of(sample(versions), AS_STATED, HELD).spans
    assert all(a.version < b.version for a, b in pairwise(spans))
    assert {span.version for span in spans} == {2 * version + 1 for version in versions}


def test_a_mixture_comes_just_before_its_version_and_after_the_one_below() -> None:
    whole, mixed = Held(3).number, Held(3, frozenset({"norm"}), 2).number
    assert Held(2).number < mixed < whole < Held(4, frozenset({"norm"}), 3).number
    assert mixed % 2 == 0 and Held(3, int8=True).number == mixed
