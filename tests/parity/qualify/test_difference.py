"""Two configurations are compared value by value, and a pair that cannot be compared fairly is refused."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.errors import InputError
from lockstep.parity.qualify.difference import (
    EQUAL,
    UNKNOWN,
    Difference,
    Setting,
    differences,
    fingerprint,
    plain,
    shown,
)

SHARED = {"chat_template": "c1", "model": "SmolLM2", "prompts": "p1", "seed": 7, "tokenizer": "t1"}
HOUSE = re.compile(r"^.+ \(.+\): .+ - got .+, expected .+\. .+\.$", re.DOTALL)
NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
SETTINGS = st.dictionaries(TEXT.filter(lambda name: name not in EQUAL), VALUES, max_size=6)


def refused(*args, **kwargs) -> str:
    with pytest.raises(InputError) as caught:
        differences(*args, **kwargs)
    text = str(caught.value)
    assert HOUSE.match(text), text
    return text


class TestDifferences:
    def test_are_listed_by_name_with_both_values(self):
        old = {**SHARED, "b": 1, "a": "x", "same": None}
        new = {**SHARED, "a": "y", "b": 2, "same": None}
        assert differences(old, new) == (Difference("a", "x", "y"), Difference("b", 1, 2))

    def test_do_not_depend_on_the_order_of_names(self):
        old, new = {**SHARED, "a": 1, "b": 2}, {"b": 3, "a": 4, **SHARED}
        assert differences(old, new) == differences(dict(reversed(old.items())), dict(reversed(new.items())))

    def test_are_none_between_equal_configurations(self):
        assert differences(SHARED, dict(SHARED)) == ()

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            (1, 1.0),
            (0.0, -0.0),
            ((1, 2), [1, 2]),
            ({"a": 1, "b": 2}, {"b": 2.0, "a": 1}),
            ([{"x": (1.0,)}], [{"x": [1]}]),
        ],
    )
    def test_do_not_tell_equal_values_apart(self, old, new):
        assert differences({**SHARED, "x": old}, {**SHARED, "x": new}) == ()

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            (1, True),
            (0, False),
            (0, None),
            ("1", 1),
            ("", None),
            ("true", True),
            ([1, 2], [2, 1]),
            ([], {}),
            (2**53, 2**53 + 1),
            (0.1, 0.1 + 2**-55),
            ({"a": None}, {}),
        ],
    )
    def test_tell_unlike_values_apart(self, old, new):
        assert differences({**SHARED, "x": old}, {**SHARED, "x": new}) == (Difference("x", old, new),)

    @given(old=SETTINGS, new=SETTINGS)
    def test_are_exactly_the_names_with_unlike_values(self, old, new):
        both = {name: (old[name], new[name]) for name in set(old) & set(new)}
        found = differences(
            SHARED | {name: values[0] for name, values in both.items()},
            SHARED | {name: values[1] for name, values in both.items()},
        )
        assert [d.name for d in found] == sorted(d.name for d in found)
        told = {d.name for d in found}
        for name, (a, b) in both.items():
            if type(a) is type(b) and a == b and not isinstance(a, (list, dict)):
                assert name not in told
            if a != b and not isinstance(a, (list, dict)):
                assert name in told

    def test_say_what_to_set(self):
        assert Difference("logprobs_mode", "processed", "raw").restored == Setting("logprobs_mode", "processed")


class TestUnknown:
    def test_a_name_that_one_side_lacks_is_refused(self):
        text = refused({**SHARED, "cache_salt": "w"}, SHARED)
        assert text.startswith("settings (cache_salt):")
        assert "no cache_salt of NEW" in text
        assert "OLD" not in text.split(" - got ")[1].split(", expected")[0]

    @pytest.mark.parametrize("sides", [("OLD",), ("NEW",), ("OLD", "NEW")])
    def test_a_value_that_is_not_told_is_refused(self, sides):
        old, new = ({**SHARED, "x": UNKNOWN if side in sides else 1} for side in ("OLD", "NEW"))
        assert f"no x of {' and '.join(sides)}" in refused(old, new)

    @pytest.mark.parametrize("name", sorted(EQUAL))
    def test_what_must_be_shared_must_be_told(self, name):
        less = {key: value for key, value in SHARED.items() if key != name}
        assert f"no {name} of OLD and NEW" in refused(less, less)

    def test_all_of_them_are_named_at_once(self):
        assert refused({**SHARED, "b": 1}, {**SHARED, "a": 1}).startswith("settings (a, b):")

    def test_none_is_a_value_like_others(self):
        assert differences({**SHARED, "x": None}, {**SHARED, "x": 1}) == (Difference("x", None, 1),)


class TestConfounded:
    @pytest.mark.parametrize("name", sorted(EQUAL))
    def test_a_pair_that_does_not_share_it_is_refused(self, name):
        text = refused(SHARED, {**SHARED, name: "another"})
        assert text.startswith(f"baseline ({name}):")
        assert "another in NEW" in text

    def test_all_of_them_are_named_at_once(self):
        assert refused(SHARED, {**SHARED, "seed": 8, "model": "m"}).startswith("baseline (model, seed):")

    def test_the_names_are_the_callers(self):
        old, new = {"dtype": "fp32", "seed": 1}, {"dtype": "bf16", "seed": 2}
        assert refused(old, new, equal={"dtype"}).startswith("baseline (dtype):")
        assert [d.name for d in differences(old, new, equal=())] == ["dtype", "seed"]

    def test_the_same_value_written_otherwise_is_shared(self):
        assert differences(SHARED, {**SHARED, "seed": 7.0}) == ()


class TestPlain:
    @pytest.mark.parametrize(
        "value",
        [
            float("nan"),
            float("inf"),
            2**64,
            -(2**63) - 1,
            b"bytes",
            object(),
            {1: "a"},
            {"a": {1, 2}},
            np.float32(1.0),
            np.int64(3),
            "half \ud800",
            {"\udfff": 1},
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_what_a_record_cannot_hold_is_refused(self, value):
        assert refused({**SHARED, "x": value}, {**SHARED, "x": 1}).startswith("setting (x):")

    def test_names_must_be_text_too(self):
        assert refused({**SHARED, "\ud800": 1}, {**SHARED, "\ud800": 1}).startswith('setting ("\\ud800"):')

    def test_nesting_without_an_end_is_refused(self):
        endless: list = []
        endless.append(endless)
        assert "levels of nesting" in refused({**SHARED, "x": endless}, {**SHARED, "x": 1})

    def test_tuples_become_lists(self):
        assert plain("x", {"a": (1, (2, "b"))}) == {"a": [1, [2, "b"]]}

    @given(VALUES)
    def test_plain_values_stay_as_they_are(self, value):
        assert plain("x", value) == value


class TestFingerprint:
    def test_is_the_same_for_equal_pairs(self):
        assert fingerprint({"a": 1, "b": (2,)}, {}) == fingerprint({"b": [2.0], "a": 1.0}, {})

    @pytest.mark.parametrize(
        ("old", "new"),
        [({"a": 2}, {}), ({}, {"a": 1}), ({"a": "1"}, {}), ({"a": True}, {}), ({"b": 1}, {}), ({"a": 1}, {"a": 1})],
    )
    def test_tells_pairs_apart(self, old, new):
        assert fingerprint({"a": 1}, {}) != fingerprint(old, new)

    @given(old=SETTINGS, new=SETTINGS)
    def test_does_not_depend_on_order(self, old, new):
        turned = [dict(reversed(side.items())) for side in (old, new)]
        assert fingerprint(old, new) == fingerprint(*turned)

    def test_refuses_what_is_not_plain(self):
        with pytest.raises(InputError, match=r"setting \(a\)"):
            fingerprint({"a": object()}, {})


class TestShown:
    @pytest.mark.parametrize(
        ("value", "text"),
        [
            ("processed_logprobs", "processed_logprobs"),
            ("a/b:c-1.0+x", "a/b:c-1.0+x"),
            ("true", '"true"'),
            (True, "true"),
            ("1", '"1"'),
            (1, "1"),
            (0.5, "0.5"),
            (None, "null"),
            ("null", '"null"'),
            ("", '""'),
            ("two words", '"two words"'),
            ('a"b\\', '"a\\"b\\\\"'),
            ("a\nb", '"a\\u000ab"'),
            ("\u202egnp", '"\\u202egnp"'),
            ("\U000e0001", '"\\U000e0001"'),
            ("日本", '"日本"'),
            ([1, "a"], '[1,"a"]'),
            ({"k": None}, '{"k":null}'),
        ],
    )
    def test_words_stand_bare_and_the_rest_is_quoted(self, value, text):
        assert shown(value) == text

    @given(value=VALUES, most=st.integers(8, 80))
    def test_is_one_short_printable_line(self, value, most):
        text = shown(value, most)
        assert text.isprintable()
        assert len(text) <= most + 2
        assert len(text.splitlines()) == 1

    def test_a_cut_is_marked_and_breaks_no_escape_of_a_quote(self):
        assert shown("x" * 100, 10) == "xxxxxxxxx…"
        assert shown('"' * 100, 8) == '"\\"\\"\\"…"'

    @given(st.text() | st.binary() | st.floats())
    def test_anything_can_be_shown(self, value):
        assert shown(value).isprintable()

    def test_a_setting_reads_as_it_is_set(self):
        assert str(Setting("cache_salt", "per_version")) == "cache_salt=per_version"
        assert str(Setting("a b", 1)) == '"a b"=1'
