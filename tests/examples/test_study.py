"""The statistics of the study, against brute force and known answers; its arms, and its tables."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.migration import figure, study
from examples.migration.settings import NAIVE, REFERENCE
from examples.migration.statistics import MOST, area, holm, interval, paired, sign_flip

WHOLE = st.lists(st.integers(-50, 50), min_size=1, max_size=9)
P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=8)


@given(WHOLE)
def test_sign_flips_are_counted_one_by_one(differences: list[int]) -> None:
    seen = abs(sum(differences))
    turned = [sum(s * d for s, d in zip(signs, differences, strict=True))
              for signs in itertools.product((-1, 1), repeat=len(differences))]  # fmt: skip
    assert sign_flip(differences) == np.mean([abs(total) >= seen for total in turned])


@given(WHOLE, st.sampled_from([0.001, 0.1, 3.0, 1e6]))
def test_p_does_not_change_with_sign_order_or_unit(differences: list[int], unit: float) -> None:
    p = sign_flip(differences)
    assert 2 / 2 ** len(differences) <= p <= 1
    assert p == sign_flip([-d for d in differences]) == sign_flip(differences[::-1])
    assert p == sign_flip([d * unit for d in differences])


@pytest.mark.parametrize("count", range(1, MOST + 1))
def test_differences_of_one_sign_have_the_least_p(count: int) -> None:
    assert sign_flip(np.arange(1, count + 1) / 7) == 2 / 2**count


def test_no_difference_at_all_has_p_1() -> None:
    assert sign_flip([0.0] * 6) == 1.0
    assert sign_flip([1.0, -1.0]) == 1.0


def test_a_known_p() -> None:
    """Of the 8 sums of +-1 +-2 +-4 those of -1 + 2 + 4 = 5 or more are 5 and 7, and as many below."""
    assert sign_flip([-1, 2, 4]) == 4 / 8


@pytest.mark.parametrize("wrong", [[], [1.0] * (MOST + 1), [math.nan], [math.inf, 1.0]])
def test_what_cannot_be_tested_is_refused(wrong: list[float]) -> None:
    with pytest.raises(ValueError, match="1 to 16 finite differences"):
        sign_flip(wrong)
    with pytest.raises(ValueError, match="1 to 16 finite differences"):
        interval(wrong)


@given(st.lists(st.integers(-1000, 1000), min_size=6, max_size=9, unique=True))
def test_the_interval_is_of_subset_means(differences: list[int]) -> None:
    means = sorted(
        np.mean(some) for size in range(1, len(differences) + 1) for some in itertools.combinations(differences, size)
    )
    low, high, confidence = interval(differences)
    outside = round((1 - confidence) / 2 * 2 ** len(differences))
    assert low == pytest.approx(means[outside - 1]) and high == pytest.approx(means[-outside])
    assert 0.95 <= confidence < 0.97
    assert low <= np.mean(differences) <= high


@given(st.lists(st.floats(-1, 1), min_size=6, max_size=10))
def test_the_interval_has_0_exactly_if_the_test_does_not_reject(differences: list[float]) -> None:
    """The two are one procedure, but for ties, in which sums of 0 count for both."""
    low, high, confidence = interval(differences)
    p = sign_flip(differences)
    if low > 1e-9 or high < -1e-9:
        assert p <= 1 - confidence + 1e-12
    if low < -1e-9 and high > 1e-9:
        assert p > 1 - confidence - 1e-12


def test_the_interval_covers_as_often_as_it_says() -> None:
    drawn = np.random.Generator(np.random.Philox(key=7)).standard_normal((2000, 8))
    found = [interval(row) for row in drawn]
    inside = np.mean([low <= 0 <= high for low, high, _ in found])
    confidence = found[0][2]
    assert abs(inside - confidence) < 4 * math.sqrt(confidence * (1 - confidence) / len(drawn))


@pytest.mark.parametrize(("count", "confidence"), [(1, 0.0), (2, 0.5), (3, 0.75), (5, 0.9375)])
def test_few_pairs_say_how_little_they_know(count: int, confidence: float) -> None:
    """No interval of so few has 95 %: the widest that there is, with what it has."""
    differences = [1.0 + i for i in range(count)]
    assert interval(differences) == (1.0, count, confidence)


def test_all_of_it_at_once() -> None:
    found = paired([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert found.count == 6 and found.mean == pytest.approx(0.35) and found.p == 2 / 64
    assert (found.low, found.high) == pytest.approx((0.1, 0.6))


@given(P_VALUES)
def test_holm_never_makes_smaller_and_keeps_the_order(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()
    assert all(a <= min(1, len(p_values) * p) for p, a in zip([min(p_values)], [min(adjusted)], strict=True))


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


@given(st.floats(-5, 5), st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_the_area_of_a_level_line_is_its_height(height: float, gaps: list[int]) -> None:
    steps = np.cumsum([0, *gaps])
    assert area(steps, [height] * len(steps)) == pytest.approx(height)


def test_the_area_of_a_slope() -> None:
    assert area([0, 10], [0, 1]) == 0.5
    assert area([0, 1, 10], [0, 1, 1]) == pytest.approx(0.95)


def test_the_arms_are_two_by_two() -> None:
    cells = {(arm.settings, arm.correction) for arm in study.ARMS}
    assert cells == {(s, c) for s in (NAIVE, REFERENCE) for c in ("none", "sequence_tis")}
    names = {arm.name for arm in study.ARMS}
    assert all({one, other} <= names for one, other, _ in study.CONTRASTS)


def _runs(seeds: range, **accuracy: float) -> list[dict]:
    """Runs whose accuracy is that of the arm and a little of the seed."""
    runs = []
    for arm in study.ARMS:
        for seed in seeds:
            end = accuracy[arm.name.replace("+", "_")] + 0.001 * seed * (arm.correction == "none")
            curve = [(0, 0.1, 0.1), (25, end, end)]
            numbers = {"accuracy": end, "greedy": end, "area": area([0, 25], [0.1, end])}
            rest = {"mismatch_mean": 0.0, "mismatch_max": 0.0, "clipped": 0.0, "tokens": 10, "cpu_seconds": 1.0}
            runs.append({"arm": arm.name, "seed": seed, "steps": 25, "curve": curve, **numbers, **rest})
    return runs


LEVELS = {"broken": 0.2, "broken_correction": 0.1, "mended": 0.6, "mended_correction": 0.7}


def test_contrasts_are_of_pairs() -> None:
    found = study.analyse(_runs(range(6), **LEVELS))
    by_name = {(one["outcome"], one["of"]): one for one in found["contrasts"]}
    assert len(by_name) == len(study.CONTRASTS) * len(study.OUTCOMES)
    mended = by_name["accuracy", "mended - broken"]
    assert mended["mean"] == pytest.approx(0.4) and mended["p"] == 2 / 64
    assert mended["p_holm"] == pytest.approx(4 * 2 / 64)
    assert by_name["accuracy", "broken+correction - broken"]["mean"] == pytest.approx(-0.1025)
    assert by_name["area", "mended - broken"]["mean"] == pytest.approx(0.2)


def test_a_seed_that_an_arm_lacks_is_left_out_of_all() -> None:
    runs = _runs(range(4), **LEVELS)
    runs = [run for run in runs if (run["arm"], run["seed"]) != ("mended", 2)]
    assert study.analyse(runs)["seeds"] == [0, 1, 3]


def test_the_order_of_the_runs_does_not_matter() -> None:
    runs = _runs(range(5), **LEVELS)
    assert study.analyse(runs) == study.analyse(runs[::-1])


def test_the_table_has_a_row_for_everything() -> None:
    text = study.table(study.analyse(_runs(range(3), **LEVELS)))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(study.ARMS) + 2 + len(study.CONTRASTS) * len(study.OUTCOMES)
    assert len({row.count("|") for row in rows[:6]}) == 1 == len({row.count("|") for row in rows[6:]})


def test_the_figure(tmp_path: Path) -> None:
    runs = _runs(range(3), **LEVELS)
    figure.study(tmp_path / "study.svg", study.analyse(runs), runs)
    text = (tmp_path / "study.svg").read_text()
    assert all(figure.COLOURS[arm.name] in text for arm in study.ARMS)


def test_what_was_run_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = _runs(range(2), **LEVELS)
    (tmp_path / "study_runs.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs))
    monkeypatch.setattr(study, "run_one", None)
    assert study.main(["--seeds", "2", "--steps", "25", "--out", str(tmp_path)]) == 0
    whole = json.loads((tmp_path / "study.json").read_text())
    assert whole["seeds"] == [0, 1] and len(whole["contrasts"]) == 8
    assert (tmp_path / "study.svg").exists()


def test_the_committed_result_is_what_its_runs_say() -> None:
    """The table of the page cannot drift from the runs that are kept beside it."""
    runs = [json.loads(line) for line in (study.RESULTS / "study_runs.jsonl").read_text().splitlines()]
    whole = json.loads((study.RESULTS / "study.json").read_text())
    found = json.loads(json.dumps(study.analyse(runs)))
    assert len(whole["seeds"]) >= 10
    assert {key: whole[key] for key in found} == found
    page = (study.RESULTS.parent / "README.md").read_text()
    assert study.table(found) in page
