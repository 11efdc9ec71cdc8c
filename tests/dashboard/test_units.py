"""Numbers are said so that nothing small passes for zero and nothing unknown for known."""

from __future__ import annotations

import math
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lockstep.dashboard.units import ABSENT, BARS, clock, count, duration, exact, fixed, sparkline, wilson


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (count(41235), "41,235"),
        (count(None), ABSENT),
        (count(math.nan), ABSENT),
        (exact(0.0), "0.0"),
        (exact(-0.0), "0.0"),
        (exact(5.96e-8), "5.96e-08"),
        (exact(math.nan), "nan"),
        (exact(None), ABSENT),
        (fixed(0.5416, 3), "0.542"),
        (fixed(0.0, 4), "0.0000"),
        (fixed(0.00001, 3), "1.0e-05"),
        (fixed(-0.00001, 3), "-1.0e-05"),
        (fixed(math.nan), "nan"),
        (fixed(math.inf), "inf"),
        (fixed(None), ABSENT),
        (duration(0.012), "12 ms"),
        (duration(4.94), "4.9 s"),
        (duration(59.96), "1 min 00 s"),
        (duration(192), "3 min 12 s"),
        (duration(3599.6), "1 h 00 min"),
        (duration(7500), "2 h 05 min"),
        (duration(None), ABSENT),
        (duration(math.inf), ABSENT),
        (clock(0), "0:00"),
        (clock(110.4), "1:50"),
        (clock(7500), "2:05:00"),
        (clock(None), ABSENT),
    ],
)
def test_how_a_number_is_said(said: str, expected: str) -> None:
    assert said == expected


@given(st.floats(allow_nan=False).filter(lambda value: value != 0))
def test_only_zero_is_said_as_zero(value: float) -> None:
    assert float(exact(value)) != 0 or abs(value) < 1e-307
    assert exact(value) != "0.0"


@example([sys.float_info.max, -1e291], 2)
@given(st.lists(st.none() | st.floats(), max_size=30), st.integers(-1, 20))
def test_a_sparkline_fits_and_shows_what_it_has(values: list[float | None], width: int) -> None:
    line = sparkline(values, width)
    assert len(line) <= max(width, 0)
    assert set(line) <= {*BARS, " "}


def test_a_sparkline_rises_with_its_values() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == BARS
    assert sparkline([5, 5], 8) == BARS[0] * 2
    assert sparkline([1, None, math.nan, 2], 8) == f"{BARS[0]}  {BARS[-1]}"
    assert sparkline([9, 0, 1], 2) == f"{BARS[0]}{BARS[-1]}", "the latest are shown"


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (57, 80, 0.6054, 0.8000)],
)
def test_wilson_agrees_with_the_tables(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson(successes, trials) == (pytest.approx(low, abs=2e-4), pytest.approx(high, abs=2e-4))
