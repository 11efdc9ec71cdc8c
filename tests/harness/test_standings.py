"""Auditor and rules side by side: what is in time, what is a false alarm, and the table that says so."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.harness.faults import INJECTIONS
from lockstep.harness.rules import RULES
from lockstep.harness.scoreboard import PATIENCE, Case
from lockstep.harness.scores import Scores
from lockstep.harness.standings import OURS, Standing, saw, seen_by, standings, table
from lockstep.parity.catalogue import CATALOGUE
from lockstep.parity.evidence import Evidence, Finding

HARD = next(code for code in INJECTIONS if CATALOGUE[code].hard)
SOFT = next(code for code in INJECTIONS if not CATALOGUE[code].hard)
VERL = next(rule for rule in RULES if rule.name == "verl")
TRL = next(rule for rule in RULES if rule.name == "TRL")

steps = st.lists(st.integers(-2, 4), max_size=4).map(tuple)
flags = st.dictionaries(st.sampled_from([rule.name for rule in RULES]), steps)


def case(code: str | None, named: str | None = None, *, early: bool = False, **flagged: tuple[int, ...]) -> Case:
    """A run in which `named` was found at once, and rules flagged these steps."""
    found = Finding("fault", 2, (Evidence(named, "as seen"),)) if named else None
    return Case(code, 0, found, 0 if found else None, True, early, flags=flagged)


cases = st.builds(
    lambda code, named, early, flagged: case(code, named, early=early and named is not None, **flagged),
    st.sampled_from([HARD, SOFT, None]),
    st.sampled_from([HARD, SOFT, None]),
    st.booleans(),
    flags,
)


# -- one case


@pytest.mark.parametrize(
    ("code", "flagged", "expected"),
    [
        (HARD, (0,), True),
        (HARD, (0, 1), True),
        (HARD, (1,), False),  # the trainer has taken the step
        (HARD, (), False),
        (HARD, (-1, 0), False),  # it had flagged before there was a fault
        (SOFT, (0,), True),
        (SOFT, (PATIENCE - 1,), True),
        (SOFT, (PATIENCE,), False),
        (SOFT, (-1, PATIENCE - 1), False),
        (SOFT, (), False),
    ],
)
def test_a_hard_fault_must_be_flagged_at_once_and_a_soft_one_in_time(code: str, flagged, expected: bool) -> None:
    assert saw(case(code, verl=flagged), "verl") == expected


def test_no_rule_sees_a_fault_in_a_clean_run() -> None:
    assert not saw_any(case(None, verl=(0,)))


def saw_any(one: Case) -> bool:
    return any(one.flag_delay(rule.name) is not None for rule in RULES)


def test_rules_are_counted_in_their_order_and_left_out_if_they_saw_nothing() -> None:
    runs = [case(HARD, TRL=(0,), verl=(0,)), case(HARD, TRL=(0,), slime=(1,))]
    assert list(seen_by(runs).items()) == [("verl", 1), ("TRL", 2)]
    assert seen_by([]) == {}


# -- a row


def test_a_rule_is_scored_on_the_runs_that_it_is_about() -> None:
    runs = [
        case(HARD, verl=(0,)),
        case(HARD, verl=(1,)),
        case(HARD, verl=(-1, 0)),
        case(HARD),
        case(SOFT, verl=(2,)),
        case(SOFT, verl=(3,)),
        case(None, verl=(0, 5)),
        case(None, TRL=(0,)),
        case(None),
    ]
    assert Standing.of_rule(VERL, runs) == Standing("verl", 0.25, 0.5, 2)
    assert Standing.of_rule(TRL, runs) == Standing("TRL", 0.0, 0.0, 1, alarm=False)


def test_a_run_counts_as_one_false_alarm_however_many_of_its_steps_are_flagged() -> None:
    runs = [case(None, verl=(0, 1, 2, 3)), case(HARD, verl=(-2, -1, 0))]
    assert Standing.of_rule(VERL, runs).false_alarms == 2


def test_of_no_runs_there_is_no_fraction() -> None:
    for row in standings([]):
        assert math.isnan(row.hard_at_once) and math.isnan(row.soft_in_time) and row.false_alarms == 0


def test_ours_is_first_and_the_only_one_that_names_anything() -> None:
    ours, *others = standings([case(HARD, HARD), case(SOFT, HARD)])
    assert (ours.name, ours.layer, ours.cause) == (OURS, pytest.approx(ours.layer), 0.5)
    assert [row.name for row in others] == [rule.name for rule in RULES]
    assert all(row.layer is None and row.cause is None for row in others)


@given(st.lists(cases, max_size=8))
def test_our_row_says_what_the_scores_say(runs: list[Case]) -> None:
    ours, scores = standings(runs)[0], Scores(runs)
    expected = (scores.hard_at_once, scores.soft_in_time, scores.right_layer, scores.right_cause)
    for got, said in zip((ours.hard_at_once, ours.soft_in_time, ours.layer, ours.cause), expected, strict=True):
        assert got == pytest.approx(said, nan_ok=True)
    assert ours.false_alarms == scores.false_alarms


@given(st.lists(cases, max_size=8))
def test_no_run_is_both_seen_and_a_false_alarm(runs: list[Case]) -> None:
    for row in standings(runs)[1:]:
        faulty = [one for one in runs if one.code is not None]
        seen = sum(saw(one, row.name) for one in faulty)
        assert seen + row.false_alarms <= len(runs)
        assert seen_by(faulty).get(row.name, 0) == seen


@given(st.lists(cases, max_size=8))
def test_runs_may_come_in_any_order(runs: list[Case]) -> None:
    for row, other in zip(standings(runs), standings(runs[::-1]), strict=True):
        assert row.plain() == pytest.approx(other.plain(), nan_ok=True)


# -- the table


def test_the_table_has_a_row_for_each_and_a_footnote_for_each_rule() -> None:
    lines = table([case(HARD, HARD, verl=(0,)), case(HARD, HARD), case(SOFT, SOFT), case(None, TRL=(0,))])
    assert lines[0] == (
        "| rule | hard faults flagged at once | soft faults flagged in time | false alarms | layer | cause |"
    )
    assert lines[2] == f"| {OURS} | 100.0% | 100.0% | 0 | 100.0% | 100.0% |"
    assert "| verl[^1] | 50.0% | 0.0% | 0 | - | - |" in lines
    assert f"| TRL[^{len(RULES)}] | 0.0% | 0.0% | 1 | - | - |" in lines
    notes = [line for line in lines if line.startswith("[^")]
    assert len(notes) == len(RULES)
    for number, (note, rule) in enumerate(zip(notes, RULES, strict=True), 1):
        assert note.startswith(f"[^{number}]: ") and rule.what in note and rule.source in note
        assert ("A bound of a correction" in note) == (not rule.alarm)


def test_every_row_has_as_many_cells_as_the_head() -> None:
    rows = [line for line in table([case(HARD, verl=(0,))]) if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
    assert len(rows) == 2 + 1 + len(RULES)


def test_no_runs_are_dashes_in_the_table() -> None:
    lines = table([])
    assert f"| {OURS} | - | - | 0 | - | - |" in lines
    assert not any("nan" in line for line in lines)
