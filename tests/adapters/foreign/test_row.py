"""Columns with checked types: arrays as observations have them, and errors that name place and column."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.adapters.foreign.row import LAST_ID, Row, has
from lockstep.errors import InputError

PLACE = "f.jsonl (line 7)"


def row(**tree: Any) -> Row:
    return Row(PLACE, tree)


def refused(expected: str) -> Any:
    return pytest.raises(InputError, match=rf"^f.jsonl \(line 7\): {expected}")


def test_what_is_not_there_is_none():
    for column in ("missing", "null"):
        r = row(null=None)
        assert (r.text(column), r.integer(column), r.number(column), r.flag(column)) == (None,) * 4
        assert (r.ids(column), r.floats(column), r.flags(column), r.stated(column)) == (None,) * 4
        assert (r.row(column), r.rows(column)) == (None, None)


def test_values():
    r = row(t="a", i=3, f=0.5, b=True, o={"x": 1}, l=[{"x": 1}, {"x": 2}])
    assert (r.text("t"), r.integer("i"), r.number("f"), r.number("i"), r.flag("b")) == ("a", 3, 0.5, 3.0, True)
    assert r.needed("i") == 3
    inner, items = r.row("o"), r.rows("l")
    assert inner is not None
    assert items is not None
    assert inner.integer("x") == 1
    assert [item.integer("x") for item in items] == [1, 2]


@pytest.mark.parametrize(
    ("call", "got", "expected"),
    [
        (lambda: row(a=1).text("a"), "an integer", "text"),
        (lambda: row(a=True).integer("a"), "true or false", "an integer"),
        (lambda: row(a=1.0).integer("a"), "a number", "an integer"),
        (lambda: row(a="1").number("a"), "text", "a number"),
        (lambda: row(a=True).number("a"), "true or false", "a number"),
        (lambda: row(a=1).flag("a"), "an integer", "true or false"),
        (lambda: row(a={}).ids("a"), "an object", "a list of token ids"),
        (lambda: row(a="x").floats("a"), "text", "a list of numbers"),
        (lambda: row(a=3).rows("a"), "an integer", "a list"),
        (lambda: row().needed("a"), "nothing", "an integer"),
        (lambda: row(a=None).needed("a"), "nothing", "an integer"),
        (lambda: row(a=2**63).integer("a"), str(2**63), "an integer of at most 64 bits"),
    ],
)
def test_wrong_types_name_the_column(call: Any, got: str, expected: str):
    with refused(rf"column a is not as this format has it - got {got}, expected {expected}\. Mend the line"):
        call()


@pytest.mark.parametrize(
    ("values", "at", "got"),
    [([1, 2.0], 1, "a number"), ([None], 0, "null"), ([1, True], 1, "true or false"), ([1, "2"], 1, "text")],
)
def test_ids_are_integers(values: list[Any], at: int, got: str):
    with refused(rf"column a\[{at}\] is not as this format has it - got {got}, expected token ids"):
        row(a=values).ids("a")


@pytest.mark.parametrize("bad", [-1, LAST_ID + 1, 2**63, -(2**70)])
def test_ids_fit_their_type(bad: int):
    with refused(rf"column a\[1\] is not as this format has it - got {bad}, expected a token id, 0 to {LAST_ID}"):
        row(a=[3, bad]).ids("a")


def test_ids_are_int32_and_labels_may_be_minus_100():
    ids = row(a=[0, LAST_ID]).ids("a")
    assert ids is not None
    assert ids.dtype == np.int32
    assert ids.tolist() == [0, LAST_ID]
    labels = row(a=[-100, 5]).ids("a", -100)
    assert labels is not None
    assert labels.tolist() == [-100, 5]
    assert row(a=[]).ids("a").shape == (0,)  # type: ignore[union-attr]


def test_floats_keep_what_float32_can_hold():
    values = row(a=[-0.1, 0, -9999.0, None, float("nan"), -1e300, 10**400]).floats("a")
    assert values is not None
    assert values.dtype == np.float32
    assert values[0] == np.float32(-0.1)
    assert values[1:3].tolist() == [0.0, -9999.0]
    assert np.isnan(values[3:5]).all()
    assert values[5:].tolist() == [-math.inf, math.inf]


@pytest.mark.parametrize(("bad", "got"), [("-0.5", "text"), (True, "true or false"), ([0.5], "a list")])
def test_floats_are_numbers(bad: Any, got: str):
    with refused(rf"column a\[1\] is not as this format has it - got {got}, expected numbers"):
        row(a=[-0.5, bad]).floats("a")


def test_all_null_is_the_writers_nothing():
    r = row(a=[None, None], b=[None, 0.5], c=[])
    assert r.stated("a") is None
    assert r.flags("a") is None
    assert r.stated("b") is not None
    assert r.stated("c") is not None


def test_flags():
    flags = row(a=[True, False, 1, 0]).flags("a")
    assert flags is not None
    assert flags.dtype == bool
    assert flags.tolist() == [True, False, True, False]
    with refused(r"column a is not as this format has it - got other integers, expected true or false"):
        row(a=[1, 2]).flags("a")
    with refused(r"column a\[1\] is not as this format has it - got null, expected true or false"):
        row(a=[True, None]).flags("a")


def test_places_of_objects_within():
    r = row(choices=[{"logprobs": {"token_logprobs": ["x"]}}, 3])
    with refused(r"column choices\[1\] is an object of JSON - got an integer, expected an object"):
        r.rows("choices")
    inner = Row.of(PLACE, r.tree["choices"][0], "choices[0].").row("logprobs")
    assert inner is not None
    with refused(r"column choices\[0\]\.logprobs\.token_logprobs\[0\] is not as this format has it"):
        inner.floats("token_logprobs")
    with refused(r"every line is an object of JSON - got a list, expected an object"):
        Row.of(PLACE, [])


def test_columns_of_one_length():
    r = row()
    r.same_length({"a": np.zeros(2), "b": None, "c": np.zeros(2)})
    with refused(r"column a is not as this format has it - got lengths a 2, c 3, expected columns of one length"):
        r.same_length({"a": np.zeros(2), "b": None, "c": np.zeros(3)})


def test_texts_that_no_encoding_holds():
    assert row(a="x\ud800y").text("a") == "x?y"


def test_has():
    assert has({"a": None, "b": 1}, "a", "b")
    assert not has({"a": 1}, "a", "b")
    assert not has([("a", 1)], "a")
    assert not has("ab", "a")


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=10,
)


@given(value=ANYTHING)
def test_any_value_is_read_or_refused(value: Any):
    r = row(a=value)
    for read in (r.text, r.integer, r.number, r.flag, r.ids, r.floats, r.flags, r.stated, r.row, r.rows, r.needed):
        try:
            found = read("a")
        except InputError as refusal:
            assert str(refusal).startswith(f"{PLACE}: column a")
        else:
            assert found is None or value is not None


@given(values=st.lists(st.integers(0, LAST_ID)))
def test_ids_are_what_was_written(values: list[int]):
    assert row(a=values).ids("a").tolist() == values  # type: ignore[union-attr]


@given(values=st.lists(st.none() | st.floats(width=32)))
def test_floats_are_what_was_written(values: list[float | None]):
    found = row(a=values).floats("a")
    assert found is not None
    expected = np.array([np.nan if v is None else v for v in values], np.float32)
    np.testing.assert_array_equal(found, expected)
