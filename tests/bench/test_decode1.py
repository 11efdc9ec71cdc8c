from __future__ import annotations

from pathlib import Path

import pytest

from bench.contest import Standing
from bench.decode1 import FEWEST_ALIKE, judge
from bench.referee import Unfair
from lockstep.adapters.engines.process import Program


def drew(*rounds: list[int]) -> Standing:
    answers = tuple({"seconds": 1.0, "tokens": [tokens]} for tokens in rounds)
    return Standing(Program("x", Path("x"), Path("x"), {}), {}, answers, None)


OURS = drew(list(range(16)), list(range(16)))


def test_tokens_that_agree_are_counted_round_by_round():
    theirs = drew([*range(10), 99, *range(11, 16)], list(range(16)))
    assert judge("theirs", theirs, OURS, 16) == {"tokens": 16, "alike_with_ours": [10, 16]}
    assert judge("ours", OURS, OURS, 16)["alike_with_ours"] == [16, 16]


def test_a_tie_at_the_first_token_of_one_round_is_no_offence():
    assert judge("theirs", drew([99] * 16, list(range(16))), OURS, 16)["alike_with_ours"] == [0, 16]


def test_another_model_is_found_out():
    wrong = [*range(FEWEST_ALIKE - 1), *[99] * (17 - FEWEST_ALIKE)]
    with pytest.raises(Unfair, match="begin alike"):
        judge("theirs", drew(wrong, wrong), OURS, 16)


def test_fewer_tokens_are_found_out():
    with pytest.raises(Unfair, match="draws what was asked"):
        judge("theirs", drew(list(range(15)), list(range(16))), OURS, 16)
