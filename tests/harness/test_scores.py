"""What cases come to: fractions of the runs that they are about, a matrix of names, and the bars they are held to."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.harness.faults import INJECTIONS
from lockstep.harness.rules import RULES
from lockstep.harness.scoreboard import PATIENCE, Case
from lockstep.harness.scores import BARS, MISSED, UNKNOWN, Scores
from lockstep.parity.catalogue import CATALOGUE
from lockstep.parity.evidence import Evidence, Finding

HARD = next(code for code in INJECTIONS if CATALOGUE[code].hard)
SOFT = next(code for code in INJECTIONS if not CATALOGUE[code].hard)


def finding(*codes: str) -> Finding:
    return Finding("fault" if codes else "undetermined", 2, tuple(Evidence(code, "as seen") for code in codes))


def case(code: str | None, *named: str, delay: int = 0, early: bool = False, **rest) -> Case:
    """A run of `code` in which `named` were among the evidence; none: something moved without a name."""
    return Case(code, 3, finding(*named), delay, True, early, **rest)


def unseen(code: str) -> Case:
    return Case(code, 3, None, None, True, steps=4)


def quiet(**rest) -> Case:
    return Case(None, 3, None, None, **{"exact": True, "steps": 6, **rest})


# -- one case


def test_a_fault_that_is_named_is_right_in_cause_and_layer() -> None:
    found = case("WGT02", "WGT02")
    assert found.seen and found.right_cause and found.right_layer


def test_another_fault_of_the_layer_is_the_right_layer_and_the_wrong_cause() -> None:
    found = case("WGT02", "WGT04", "WGT02")
    assert found.right_layer and not found.right_cause


def test_another_layer_is_wrong_in_both() -> None:
    found = case("WGT02", "CAC01")
    assert found.seen and not found.right_layer and not found.right_cause


def test_what_a_fault_hides_may_be_named_first_if_the_fault_is_among_the_evidence() -> None:
    assert INJECTIONS["OBJ06"].beneath == ("SEM01",)
    both, beneath_alone = case("OBJ06", "SEM01", "OBJ06"), case("OBJ06", "SEM01")
    assert both.right_cause and both.right_layer
    assert not beneath_alone.right_cause


@pytest.mark.parametrize("named", [(), ("WGT02",)])
def test_what_was_said_too_early_does_not_count_as_seen(named: tuple[str, ...]) -> None:
    early = case("WGT02", *named, early=True, delay=-1)
    assert not (early.seen or early.right_cause or early.right_layer)


def test_something_without_a_name_is_seen_and_not_right() -> None:
    found = case("WGT02")
    assert found.seen and not found.right_cause and not found.right_layer


# -- their sums


def test_hard_faults_count_only_at_once_and_soft_ones_within_their_time() -> None:
    scores = Scores([case(HARD, HARD), case(HARD, HARD, delay=1), case(SOFT, SOFT, delay=2), unseen(SOFT)])
    assert scores.hard_at_once == 0.5
    assert scores.soft_in_time == 0.5


def test_causes_and_layers_are_fractions_of_the_faulty_runs() -> None:
    runs = [case("WGT02", "WGT02"), case("WGT02", "WGT04"), case("WGT02", "CAC01"), unseen("WGT02"), quiet(), quiet()]
    assert Scores(runs).right_cause == 0.25
    assert Scores(runs).right_layer == 0.5


def test_false_alarms_are_counted_in_clean_and_in_faulty_runs() -> None:
    scores = Scores([quiet(), case(None, early=True), case("WGT02", "WGT02", early=True), case("WGT02", "WGT02")])
    assert scores.false_alarms == 2
    assert "no false alarms" in scores.missed


def test_a_fraction_of_no_runs_is_no_number_and_misses_nothing() -> None:
    scores = Scores([quiet()])
    assert all(math.isnan(getattr(scores, name)) for name in BARS)
    assert scores.missed == []


def test_a_perfect_auditor_misses_no_bar() -> None:
    assert Scores([*(case(code, code) for code in INJECTIONS), quiet()]).missed == []


@pytest.mark.parametrize(
    ("runs", "missed"),
    [
        ([case(HARD, HARD)] * 99 + [unseen(HARD)], ["hard at once"]),
        ([case(SOFT, SOFT)] * 19 + [unseen(SOFT)], []),
        ([case(SOFT, SOFT)] * 18 + [unseen(SOFT)] * 2, ["soft in time", "right layer"]),
        ([case("WGT02", "WGT02")] * 9 + [case("WGT02", "WGT04")], []),
        ([case("WGT02", "WGT02")] * 8 + [case("WGT02", "WGT04")] * 2, ["right cause"]),
    ],
)
def test_a_bar_is_missed_just_below_it(runs: Sequence[Case], missed: list[str]) -> None:
    assert Scores(runs).missed == missed


@given(st.lists(st.tuples(st.sampled_from([HARD, SOFT, None]), st.sampled_from(["right", "wrong", "none", "early"]))))
def test_every_faulty_run_has_one_place_in_the_matrix(kinds: list[tuple[str | None, str]]) -> None:
    runs = []
    for code, kind in kinds:
        if kind == "none":
            runs.append(quiet() if code is None else unseen(code))
        else:
            named = code if kind == "right" and code else "DAT01"
            runs.append(case(code, named, early=kind == "early" or code is None))
    scores = Scores(runs)
    assert sum(sum(row.values()) for row in scores.matrix().values()) == len(scores.faulty)
    assert len(scores.faulty) + len(scores.clean) == len(runs)
    right = sum(row[code] for code, row in scores.matrix().items())
    assert scores.right_cause == right / len(scores.faulty) if scores.faulty else right == 0


def test_the_matrix_says_what_was_named_missed_and_left_without_a_name() -> None:
    runs = [
        case("WGT02", "WGT02"),
        case("WGT02", "CAC01"),
        case("WGT02"),
        unseen("WGT02"),
        case("OBJ06", "SEM01", "OBJ06"),
    ]
    assert Scores(runs).matrix() == {
        "WGT02": {"WGT02": 1, "CAC01": 1, UNKNOWN: 1, MISSED: 1},
        "OBJ06": {"OBJ06": 1},
    }


# -- as they are written down


def test_plain_values_survive_json_and_count_what_ran() -> None:
    runs = [case("WGT02", "CAC01", seconds=1.5), unseen("SEM01"), quiet(seconds=0.5), quiet(exact=False)]
    plain = json.loads(json.dumps(Scores(runs).plain()))
    assert (plain["faults"], plain["faulty_runs"], plain["clean_runs"], plain["clean_runs_exact"]) == (2, 2, 2, 1)
    assert (plain["clean_steps"], plain["seconds"], plain["patience"]) == (12, 2.0, PATIENCE)
    assert plain["matrix"] == {"WGT02": {"CAC01": 1}, "SEM01": {MISSED: 1}}


def test_what_went_wrong_is_listed_with_its_seed_and_evidence() -> None:
    many = case("WGT02", "CAC01", "WGT02", "WGT04", "NUM01", "OBJ01")
    wrong = Scores([many, case("WGT02", "WGT02"), unseen("SEM01")]).plain()["wrong"]
    assert [(one["code"], one["named"], one["seed"]) for one in wrong] == [("WGT02", "CAC01", 3), ("SEM01", MISSED, 3)]
    assert wrong[0]["evidence"] == ["CAC01 1.00", "WGT02 1.00", "WGT04 1.00", "NUM01 1.00"]
    assert wrong[1]["evidence"] == []


def test_markdown_has_a_row_for_each_fault_with_names_and_mean_delay() -> None:
    runs = [case("WGT02", "WGT02"), case("WGT02", "WGT02", delay=1), case("WGT02", "CAC01"), unseen("SEM01"), quiet()]
    lines = Scores(runs).markdown().splitlines()
    assert "| WGT02 | 3 | WGT02 2, CAC01 1 | 0.33 | - |" in lines
    assert f"| SEM01 | 1 | {MISSED} 1 | - | - |" in lines
    assert "| false alarms | 1 clean | 0 |" in lines
    assert "| right cause, first named | 4 | 50.0% |" in lines


def test_a_fraction_of_no_runs_is_a_dash_in_markdown() -> None:
    printed = Scores([case(HARD, HARD), quiet()]).markdown()
    assert f"| soft faults seen within {PATIENCE} steps | 0 | - |" in printed
    assert "nan" not in printed


def test_the_matrix_says_which_rules_saw_a_fault_in_how_many_runs() -> None:
    at_once, late = {"verl": (0,), "TRL": (0, 1)}, {"verl": (1,), "slime": (0,)}
    runs = [case(HARD, HARD, flags=at_once), case(HARD, HARD, flags=late), case(SOFT, SOFT), quiet(flags=at_once)]
    scores = Scores(runs)
    assert scores.seen_by() == {HARD: {"verl": 1, "slime": 1, "TRL": 1}, SOFT: {}}
    lines = scores.markdown().splitlines()
    assert f"| {HARD} | 2 | {HARD} 2 | 0 | verl 1, slime 1, TRL 1 |" in lines
    assert f"| {SOFT} | 1 | {SOFT} 1 | 0 | - |" in lines


def test_rules_are_in_the_plain_values_with_their_sources() -> None:
    plain = json.loads(json.dumps(Scores([case(HARD, HARD, flags={"verl": (0,)}), quiet()]).plain()))
    ours, *others = plain["standings"]
    assert [row["name"] for row in others] == [rule["name"] for rule in plain["rules"]] == [rule.name for rule in RULES]
    assert (ours["layer"], ours["cause"]) == (1.0, 1.0)
    assert all(row["layer"] is row["cause"] is None for row in others)
    assert plain["seen_by"] == {HARD: {"verl": 1}}
    assert all(rule["source"] and rule["what"] for rule in plain["rules"])


def test_what_a_rule_misses_is_no_bar_of_ours() -> None:
    noisy = {rule.name: (-1, 0) for rule in RULES}
    assert Scores([case(HARD, HARD, flags=noisy), case(SOFT, SOFT), quiet(flags=noisy)]).missed == []
