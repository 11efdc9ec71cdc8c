"""The exact check."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.checks.exact import Exact
from lockstep.core import Task, Verdict


def judge(text: str, answer: str | None = "dcba") -> Verdict:
    return Exact().check(Task("t", "abcd>", answer), text)


def test_pass_names_what_it_read_and_where():
    assert judge(" dcba\n") == Verdict("pass", "equal", "exact@1", witness="dcba", span=(1, 5))


@pytest.mark.parametrize("text", ["", "dcb", "dcbaa", "dcba dcba", "DCBA", "dcba.", "d cba", "xdcba"])
def test_anything_else_fails(text: str):
    assert (judge(text).status, judge(text).code) == ("fail", "unequal")


def test_no_normalisation():
    assert judge("e\N{COMBINING ACUTE ACCENT}", "\N{LATIN SMALL LETTER E WITH ACUTE}").status == "fail"


def test_no_answer_is_undecided():
    assert (judge("dcba", None).status, judge("dcba", None).code) == ("abstain", "no_answer")


def test_an_empty_answer_is_an_answer():
    assert judge("  ", "").status == "pass"
    assert judge("x", "").status == "fail"


@given(st.text(), st.text(alphabet=" \t\n"), st.text(alphabet=" \t\n"))
def test_white_space_around_it_changes_nothing(answer: str, before: str, after: str):
    verdict = judge(before + answer + after, answer)
    assert verdict.status == "pass"
    assert verdict.span is not None
    assert (before + answer + after)[slice(*verdict.span)] == verdict.witness == answer.strip()


@given(st.text(), st.text())
def test_passes_only_for_equal_texts(text: str, answer: str):
    assert (judge(text, answer).status == "pass") == (text.strip() == answer.strip())
