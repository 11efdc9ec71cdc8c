"""A trial says parity, difference or nothing; a record of it survives JSON."""

from __future__ import annotations

import math

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.parity.qualify.trial import Record, Trial

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
FIGURES = st.dictionaries(
    TEXT, st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | TEXT, max_size=5
)
PURPOSES = ["baseline", "new", "restored", "search", "verify", "attribute", "count"]
TRIALS = st.builds(Trial, st.sampled_from([True, False, None]), FIGURES)
RECORDS = st.builds(
    Record, st.none() | st.frozensets(TEXT, max_size=4), st.sampled_from(PURPOSES), TRIALS, known=st.booleans()
)
PLAIN = {"kept": ["a"], "purpose": "search", "parity": True, "figures": {"mean": 0.0}, "known": False}


class TestTrial:
    @pytest.mark.parametrize(("parity", "word"), [(True, "parity"), (False, "differs"), (None, "undetermined")])
    def test_has_an_outcome_in_a_word(self, parity, word):
        assert Trial(parity).outcome == word

    @pytest.mark.parametrize("parity", [1, 0, "yes", np.bool_(True)], ids=repr)
    def test_takes_nothing_for_a_truth_value_that_is_none(self, parity):
        with pytest.raises(AssertionError, match="True, False or None"):
            Trial(parity)

    @pytest.mark.parametrize(("value", "mean"), [(0.25, 0.25), (0, 0.0), (np.float64(0.5), 0.5)])
    def test_a_mean_is_a_number(self, value, mean):
        assert Trial(False, {"mean": value}).mean == mean

    @pytest.mark.parametrize("value", [math.nan, math.inf, None, "0.1", True])
    def test_what_is_no_finite_number_is_no_mean(self, value):
        assert Trial(False, {"mean": value}).mean is None

    def test_a_mean_may_be_missing(self):
        assert Trial(None).mean is None


class TestRecord:
    @given(RECORDS)
    def test_survives_json(self, record):
        line = orjson.dumps(record.plain())
        again = Record.of(orjson.loads(line))
        assert again.plain() == record.plain()
        assert (again.kept, again.purpose, again.trial.parity, again.known) == (
            record.kept,
            record.purpose,
            record.trial.parity,
            record.known,
        )
        for name, value in record.trial.figures.items():
            infinite = isinstance(value, float) and not math.isfinite(value)
            assert again.trial.figures[name] == (None if infinite else value)

    def test_what_json_cannot_hold_is_marked(self):
        record = Record(None, "new", Trial(None, {"why \ud800": "half \udfff", "mean": math.nan}))
        assert orjson.loads(orjson.dumps(record.plain()))["figures"] == {"why ?": "half ?", "mean": None}

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"kept": "a"}, "kept"),
            ({"kept": [1]}, "kept"),
            ({"purpose": "fun"}, "purpose"),
            ({"purpose": []}, "purpose"),
            ({"parity": 1}, "parity"),
            ({"parity": "true"}, "parity"),
            ({"known": 0}, "known"),
            ({"figures": []}, "figures"),
            ({"figures": {"mean": []}}, "figures"),
            ({"more": 1}, "exactly"),
        ],
    )
    def test_a_damaged_form_is_refused(self, change, match):
        assert Record.of(PLAIN).kept == {"a"}
        with pytest.raises(ValueError, match=match):
            Record.of(PLAIN | change)

    @pytest.mark.parametrize("plain", [None, [], 3, "x", {}, {"kept": None}])
    def test_what_is_no_record_is_refused(self, plain):
        with pytest.raises(ValueError, match="exactly"):
            Record.of(plain)
