"""Figures are small, whole, offline, the page's colours, and honest about zero."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.dashboard import figures
from lockstep.dashboard.figures import FULL, INK, MOST_POINTS, THIRD, Series, moving_mean, stride, thin, window

STEPS = np.arange(1, 41)


def texts(svg: str) -> list[str]:
    """The words of a figure: tick labels and notes."""
    return [element.text or "" for element in ET.fromstring(_plain(svg)).iter() if element.tag.endswith("text")]


def _plain(svg: str) -> str:
    return svg.replace("xlink:href", "href")


ALL = [
    lambda v: figures.lines([Series(STEPS, v)]),
    lambda v: figures.lines([Series(STEPS, v), Series(STEPS, v * 2, "violet")], bounds=(0.0, 1.05), size=THIRD),
    lambda v: figures.reward(Series(STEPS, v), np.full(40, 0.1), [(0, 0.1), (40, 0.7)]),
    lambda v: figures.parity(Series(STEPS, v, "green", worst=True)),
    lambda v: figures.stacked(STEPS, {"rollout": v, "train": v}, {"rollout": "blue", "train": "violet"}),
]


@pytest.mark.parametrize("draw", ALL)
@pytest.mark.parametrize(
    "values",
    [np.linspace(0, 1, 40), np.zeros(40), np.full(40, np.nan), np.full(40, 3.5), np.r_[np.nan, np.inf, np.ones(38)]],
    ids=["rising", "zero", "unknown", "flat", "odd"],
)
def test_every_figure_is_one_piece_of_well_formed_offline_svg(draw, values: np.ndarray) -> None:
    svg = draw(values)
    root = ET.fromstring(_plain(svg))
    assert root.tag.endswith("svg") and root.get("role") == "img" and root.get("width") is None
    assert "http" not in svg.replace("http://www.w3.org", "") and "<script" not in svg and "<style" not in svg
    used = set(re.findall(r"#([\w-]+)", svg)) & set(re.findall(r'id="([^"]+)"', svg))
    assert set(re.findall(r'id="([^"]+)"', svg)) == used, "ids would clash between figures on a page"
    assert len(svg) < 60_000


@pytest.mark.parametrize("draw", ALL)
def test_every_colour_is_the_page_s(draw) -> None:
    svg = draw(np.linspace(0, 1, 40))
    assert set(re.findall(r"var\(--(\w+)\)", svg)) <= set(INK)
    assert set(re.findall(r"#[0-9a-fA-F]{6}\b", svg)) <= {"#000000"}, "a colour that a dark page would not turn"


def test_the_same_numbers_give_the_same_bytes_and_no_setting_changes() -> None:
    before = dict(mpl.rcParams)
    one, two = (figures.lines([Series(STEPS, np.sin(STEPS))]) for _ in range(2))
    assert one == two and dict(mpl.rcParams) == before


def test_parity_says_zero_only_if_every_step_is() -> None:
    def said(values: np.ndarray) -> bool:
        return "0.0 at every step" in texts(figures.parity(Series(STEPS, values, worst=True)))

    assert said(np.zeros(40))
    for bad in (1e-30, math.nan, math.inf):
        values = np.zeros(40)
        values[17] = bad
        assert not said(values), bad
    assert "var(--red)" in figures.parity(Series(STEPS, np.r_[np.zeros(39), 0.5]))


def test_a_single_odd_step_of_a_long_run_is_not_averaged_away() -> None:
    values = np.zeros(5000)
    values[1234] = 1e-6
    shown = Series(np.arange(5000), values, worst=True).thinned()
    assert len(shown.values) <= MOST_POINTS and shown.values.max() == 1e-6
    assert "0.0 at every step" not in texts(figures.parity(Series(np.arange(5000), values, worst=True)))


def test_a_flat_zero_has_no_scale_that_could_be_misread() -> None:
    labels = texts(figures.lines([Series(STEPS, np.zeros(40))], bounds=(0.0, None)))
    assert sorted(set(labels)) == sorted({"0", "10", "20", "30", "40"})


def test_natural_ends_of_an_axis_are_kept() -> None:
    labels = texts(figures.lines([Series(STEPS, np.full(40, 0.97))], bounds=(0.0, 1.05)))
    assert "0" in labels and "1" in labels


def test_axes_speak_in_whole_steps_with_separators() -> None:
    labels = texts(figures.reward(Series(np.arange(1, 3001), np.ones(3000)), np.zeros(3000), []))
    assert "3,000" in labels and not [label for label in labels if "e+" in label]


@pytest.mark.parametrize("steps", [1, 2])
def test_a_run_of_one_step_can_be_drawn(steps: int) -> None:
    at, values = np.arange(1, steps + 1), np.full(steps, 0.5)
    for svg in (
        figures.lines([Series(at, values)]),
        figures.reward(Series(at, values), np.zeros(steps), [(0, 0.25)]),
        figures.parity(Series(at, np.zeros(steps))),
        figures.stacked(at, {"rollout": values}, {"rollout": "blue"}),
    ):
        ET.fromstring(_plain(svg))


values = st.lists(st.just(math.nan) | st.floats(-1e6, 1e6), min_size=1, max_size=60)


@settings(max_examples=100)
@given(values, st.integers(1, 20))
def test_thinning_keeps_the_range_and_the_worst(numbers: list[float], most: int) -> None:
    array = np.array(numbers)
    mean, worst = thin(array, most), thin(array, most, worst=True)
    assert len(mean) == len(worst) <= most
    known = array[np.isfinite(array)]
    assert np.isfinite(mean).any() == np.isfinite(worst).any() == bool(known.size)
    if known.size:
        assert np.nanmax(worst) == known.max()
        assert known.min() - 1e-6 <= np.nanmin(mean) and np.nanmax(mean) <= known.max() + 1e-6


def test_thinning_leaves_short_runs_alone() -> None:
    assert thin(STEPS, 40) is STEPS and len(thin(np.empty(0), 40)) == 0
    assert stride(400) == 1 and stride(401) == 2 and stride(0) == 1


def test_the_moving_mean_looks_back_only_and_skips_gaps() -> None:
    assert window(1) == 3 and window(40) == 4 and window(10**6) == 50
    found = moving_mean(np.array([1.0, 3.0, np.nan, 5.0]))
    assert found.tolist() == [1.0, 2.0, 2.0, 4.0]
    assert np.isnan(moving_mean(np.array([np.nan]))).all()


def test_sizes_fit_the_page() -> None:
    svg = figures.reward(Series(STEPS, np.ones(40)), np.zeros(40), [])
    assert f'viewBox="0 0 {FULL[0]} {FULL[1]}"' in svg
