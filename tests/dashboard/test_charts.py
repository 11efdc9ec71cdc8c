"""The report draws what was measured, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lockstep.dashboard.charts import Chart, charts
from lockstep.dashboard.facts import Facts
from lockstep.trace import RunDirectory
from lockstep.trace.metrics import encode_line

Line = Callable[..., dict[str, Any]]
Run = Callable[..., RunDirectory]


def by_title(facts: Facts) -> dict[str, Chart]:
    return {chart.title: chart for found in charts(facts).values() for chart in found}


@pytest.fixture
def run_of(tmp_path: Path, make_run: Run) -> Callable[[list[dict[str, Any]]], Facts]:
    """Facts of a run with these lines."""

    def make(lines: list[dict[str, Any]], **config: Any) -> Facts:
        run = make_run(tmp_path / "run", steps=0, outcome=None, max_steps=len(lines), **config)
        run.metrics_file.write_bytes(b"".join(encode_line(line) for line in lines))
        return Facts.of(run)

    return make


def test_a_whole_run_has_every_figure(tmp_path: Path, make_run: Run) -> None:
    found = charts(Facts.of(make_run(tmp_path, steps=4)))
    assert list(found) == ["Reward", "In lockstep", "Learning", "Speed"]
    titles = {chart.title for section in found.values() for chart in section}
    assert titles >= {
        "Reward", "Parity", "KL, trainer to sampler", "Clip rate", "Entropy", "Effective sample size", "Lag",
        "Gradient norm", "Completion length", "Tokens per second", "Time of a step",
    }  # fmt: skip
    assert "KL to the initial weights" not in titles, "without loss.beta there is nothing to measure"


def test_values_beside_the_titles_are_the_last_step_s(run_of: Callable[..., Facts], make_line: Line) -> None:
    lines = [make_line(1), make_line(2, reward=0.5, entropy=math.nan, loss=None, learning_rate=2e-6)]
    found = by_title(run_of(lines))
    assert found["Reward"].value == "0.500" and found["Parity"].value == "0.0"
    assert found["Entropy"].value == "nan", "a NaN is shown, not a gap"
    assert found["Learning rate"].value == "2e-06"


def test_what_was_never_measured_has_no_figure(run_of: Callable[..., Facts]) -> None:
    found = charts(run_of([{"step": 1, "reward": 0.5, "parity/max": 0.0, "parity/num_tokens": 8}]))
    assert [chart.title for section in found.values() for chart in section] == ["Reward", "Parity"]


def test_reference_kl_is_shown_with_beta(run_of: Callable[..., Facts], make_line: Line) -> None:
    assert "KL to the initial weights" in by_title(run_of([make_line(1, kl=0.1)], loss={"beta": 0.01}))


def test_parity_is_green_only_if_proved(run_of: Callable[..., Facts], make_line: Line) -> None:
    assert "var(--green)" in by_title(run_of([make_line(1)]))["Parity"].svg


def test_broken_parity_is_red(run_of: Callable[..., Facts], make_line: Line) -> None:
    chart = by_title(run_of([make_line(1), make_line(2, **{"parity/max": 0.5})]))["Parity"]
    assert "var(--red)" in chart.svg and "var(--green)" not in chart.svg and chart.value == "0.5"


def test_shares_of_time_are_of_the_whole_step(run_of: Callable[..., Facts], make_line: Line) -> None:
    times = {"time/step": 10.0, "time/rollout": 5.0, "time/reward": 0.001, "time/parity": 0.5, "time/train": 4.0}
    chart = by_title(run_of([make_line(1, **times, **{"time/publish": 0.0})]))["Time of a step"]
    legend = dict(text.split(" ", 1) for _, text in chart.legend)
    assert legend == {
        "rollout": "50.0 %", "train": "40.0 %", "reward": "< 0.1 %", "parity": "5.0 %", "other": "5.0 %",
    }  # fmt: skip


def test_a_long_run_says_that_points_stand_for_several_steps(run_of: Callable[..., Facts], make_line: Line) -> None:
    lines = [make_line(1) | {"step": step} for step in range(1, 802)]
    assert "one point for 3 steps" in by_title(run_of(lines))["Reward"].note


def test_no_steps_no_figures(tmp_path: Path, make_run: Run) -> None:
    assert charts(Facts.of(make_run(tmp_path, steps=0, outcome=None))) == {}
