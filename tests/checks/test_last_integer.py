"""What counts as the last integer of a text, case by case and by property."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.checks import CHECKS, find
from lockstep.checks.last_integer import LastInteger, last_number
from lockstep.core import Check, Task, Verdict
from lockstep.errors import InputError


def judge(text: str, answer: str | None = "12") -> Verdict:
    return LastInteger().check(Task("t", "What is 5 + 7?", answer), text)


@pytest.mark.parametrize(
    ("text", "digits"),
    [
        ("12", "12"),
        ("  12\n", "12"),
        ("5 + 7 = 12.", "12"),
        ("5+7=12", "12"),
        ("**12**", "12"),
        ("_12_", "12"),
        ("$12", "12"),
        ("12%", "12"),
        ("12!", "12"),
        ("...12", "12"),
        ("is.12", "12"),
        ("12.The end", "12"),
        ("007", "7"),
        ("000", "0"),
        ("+12", "12"),
        ("12:30", "30"),
        ("24/2", "2"),
        # signs
        ("-12", "-12"),
        ("\N{MINUS SIGN}12", "-12"),
        ("(-12)", "-12"),
        ("=-12", "-12"),
        ("5 * -12", "-12"),
        ("-0", "0"),
        ("20-12", "12"),
        ("20 -12", "-12"),
        ("20 - 12", "12"),
        ("x-12", "12"),
        ("(4)-12", "12"),
        ("- 12", "12"),
        ("\N{EN DASH}12", "12"),
        # commas
        ("1,234", "1234"),
        ("-1,234,567", "-1234567"),
        ("1,234.00", "1234"),
        ("1, 234", "234"),
        ("1,2", "2"),
        ("-1,2", "2"),
        ("12,34", "34"),
        ("0,123", "123"),
        ("1234,567", "567"),
        ("1,2345", "2345"),
        ("12, ", "12"),
        # fractions
        ("12.0", "12"),
        ("12.000.", "12"),
        ("3.0 and 4", "4"),
        # other scripts
        ("\N{ARABIC-INDIC DIGIT ONE}\N{ARABIC-INDIC DIGIT TWO}", "12"),
        ("\N{FULLWIDTH DIGIT ONE}\N{FULLWIDTH DIGIT TWO}", "12"),
        # words are skipped
        ("12 x13", "12"),
        ("12 is the 3rd", "12"),
        ("12 or 1e3", "12"),
    ],
)
def test_the_last_number_is(text: str, digits: str):
    found = last_number(text)
    assert found is not None
    assert found[1] == digits


@pytest.mark.parametrize("text", ["12.5", "12 or 12.5", ".5", "12 or .50", "1.2.3", "12 1.234.567", "1,234.5"])
def test_a_last_number_that_is_no_integer_fails_whatever_stands_before_it(text: str):
    verdict = judge(text)
    assert (verdict.status, verdict.code) == ("fail", "not_an_integer")
    assert verdict.witness and verdict.witness in text


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "twelve",
        "x12",
        "12th",
        "12kg",
        "1.2kg",
        "1,234x",
        "7.25th",
        "1e3",
        "5\N{SUPERSCRIPT TWO}",
        "v1.5",
        "\N{ROMAN NUMERAL TWELVE}",
    ],
)
def test_no_number_at_all_fails(text: str):
    assert (judge(text).status, judge(text).code) == ("fail", "no_number")


def test_pass_names_what_it_read_and_where():
    assert judge("5 + 7 = 12.") == Verdict("pass", "equal", "last_integer@1", witness="12", span=(8, 10))
    assert judge("12 - no, 13") == Verdict("fail", "unequal", "last_integer@1", witness="13", span=(9, 11))


def test_undecided_is_never_a_fail():
    assert (judge("12", None).status, judge("12", None).code) == ("abstain", "no_answer")
    for answer in ("", "twelve", "12.5", "x12"):
        assert (judge("12", answer).status, judge("12", answer).code) == ("abstain", "answer_not_an_integer")


def test_the_answer_is_read_by_the_same_rules():
    assert judge("1234", "1,234").status == "pass"
    assert judge("-5", "\N{MINUS SIGN}5").status == "pass"
    assert judge("5", "-5").status == "fail"


def test_more_digits_than_python_converts():
    long = "7" * 5000
    with pytest.raises(ValueError, match="limit"):
        int(long)
    assert judge(f"It is {long}", long).status == "pass"
    assert judge(f"It is {long}0", long).status == "fail"


@pytest.mark.parametrize("piece", ["1", "1,", "1.1", "-1", "1a", ".1", ",", "-"])
def test_long_texts_are_read_in_one_pass(piece: str):
    """Backtracking would need minutes here."""
    judge(piece * 100_000)


@given(st.text(), st.integers())
def test_a_number_on_its_own_line_is_always_read(before: str, value: int):
    text = f"{before}\n{value}"
    found = last_number(text)
    assert found is not None
    assert found[1] == str(value)
    assert text[slice(*found[2])] == found[0] == str(value)


@given(st.integers(), st.text(alphabet=" .!*_)\n$"))
def test_marks_after_a_number_change_nothing(value: int, after: str):
    assert judge(f"{value}{after}", str(value)).status == "pass"


@given(st.integers())
def test_thousands_are_read(value: int):
    assert judge(f"{value:,}", str(value)).status == "pass"


@given(st.text(alphabet="0123456789.,- ax\N{MINUS SIGN}\N{ARABIC-INDIC DIGIT TWO}\N{SUPERSCRIPT TWO}_\n"))
def test_whatever_the_text_the_verdict_is_decided_and_points_into_it(text: str):
    verdict = judge(text)
    assert verdict.status in ("pass", "fail")
    if verdict.span is None:
        assert verdict.code == "no_number"
    else:
        assert text[slice(*verdict.span)] == verdict.witness
        assert re.search(r"\d", verdict.witness)


@given(st.text(alphabet="0123456789 =+\n"))
def test_agrees_with_the_plain_rule_on_plain_text(text: str):
    plain = re.findall(r"\d+", text)
    found = last_number(text)
    assert (found and found[1]) == (str(int(plain[-1])) if plain else None)


def test_checks_are_found_by_name():
    assert all(isinstance(check, Check) for check in CHECKS.values())
    assert find("last_integer") == LastInteger()
    with pytest.raises(InputError, match=r"check \(first_integer\): unknown check - got .*expected exact or last_int"):
        find("first_integer")
