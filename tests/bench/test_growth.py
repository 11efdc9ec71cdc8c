from __future__ import annotations

from bench import figure
from bench.growth import _figures, _series


def test_points_hold_the_median_and_the_range():
    series = figure.Series.of("a", "x", "y", {1: [3.0, 1.0, 2.0], 8: [5.0]})
    assert series.points == (figure.Point(1, 2.0, 1.0, 3.0), figure.Point(8, 5.0, 5.0, 5.0))


def test_batches_contexts_and_steps_are_figures_of_their_own():
    drawn = {(1, 32): [10.0], (64, 32): [900.0], (4, 64): [70.0], (4, 4096): [20.0]}
    batches, contexts, steps = _series(drawn, {16: [0.5], 64: [2.0]})
    assert [point.x for point in batches.points] == [1, 64]
    assert [point.x for point in contexts.points] == [64, 4096]
    assert [point.median for point in steps.points] == [0.5, 2.0]
    (most,) = _figures(drawn)
    assert (most.what, most.median) == ("most tokens a second, 64 sequences", 900.0)


def test_the_figure_is_one_whole_svg_and_the_same_each_time(tmp_path):
    series = [figure.Series.of("tokens", "sequences", "tokens/s", {1: [10.0], 64: [900.0, 950.0]})]
    empty = figure.Series.of("nothing", "x", "y", {})
    for name in ("a", "b"):
        figure.write(tmp_path / f"{name}.svg", [*series, empty])
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text()
    assert text.startswith("<?xml") and text.rstrip().endswith("</svg>")
