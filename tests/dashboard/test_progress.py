"""What a watcher knows, and the last line of a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from lockstep.config import RunConfig
from lockstep.dashboard.progress import Progress, verdict, where

Line = Callable[..., dict[str, Any]]


def started(clock: Callable[[], float] = lambda: 0.0, **config: Any) -> Progress:
    progress = Progress(clock)
    progress.start(RunConfig.model_validate({"max_steps": 10, **config}), {"directory": "runs/x"})
    return progress


def test_time_left_is_the_mean_of_the_latest_steps(make_line: Line) -> None:
    progress = started()
    assert progress.left is None
    for step, seconds in enumerate([100.0, *[2.0] * 7, 4.0], 1):  # the slow first step falls out of the mean
        progress.advance(step, make_line(step, **{"time/step": seconds}))
    assert progress.left == (7 * 2.0 + 4.0) / 8 * 1


def test_elapsed_counts_from_the_start() -> None:
    now = 5.0
    progress = started(lambda: now)
    now = 12.0
    assert progress.elapsed == 7.0


@pytest.mark.parametrize(
    ("changes", "exact"),
    [
        ({}, True),
        ({"parity/max": 1e-9}, False),
        ({"parity/max": math.nan}, False),
        ({"parity/max": None}, False),
        ({"parity/num_tokens": 0}, False),
        ({"parity/frac_differing": 0.001}, False),  # 0.0 against -0.0: no distance, but other bits
        ({"parity/frac_differing": math.nan}, False),
    ],
)
def test_parity_is_exact_only_if_tokens_were_compared_and_all_agree(
    make_line: Line, changes: dict[str, Any], exact: bool
) -> None:
    progress = started()
    assert not progress.parity_exact, "nothing is proved before the first step"
    progress.advance(1, make_line(1, **changes))
    assert progress.parity_exact is exact


def test_an_evaluation_is_no_step(make_line: Line) -> None:
    progress = started()
    progress.advance(0, {"step": 0, "eval/accuracy": 0.25})
    assert progress.step == 0 and not progress.rewards and progress.accuracies == [(0, 0.25)]
    progress.advance(1, make_line(1, reward=0.5))
    progress.advance(2, make_line(2, reward=0.75))
    assert (progress.first_reward, list(progress.rewards)) == (0.5, [0.5, 0.75])
    assert progress.parity_tokens == make_line(1)["parity/num_tokens"] + make_line(2)["parity/num_tokens"]


DONE = {
    "outcome": "finished", "steps": 40, "seconds": 192.0, "accuracy_before": 0.15, "accuracy_after": 0.71,
    "parity_max": 0.0, "parity_tokens": 41235, "report": "runs/smollm2-add/report.html",
    "directory": "runs/smollm2-add",
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "held-out accuracy 0.15 -> 0.71, parity 0.0 over 41,235 tokens, 40 steps in 3 min 12 s"),
        ({"accuracy_before": None}, "accuracy 0.71, parity 0.0 over 41,235 tokens, 40 steps in 3 min 12 s"),
        ({"accuracy_after": None, "parity_tokens": 0, "steps": 1, "seconds": None}, "1 step"),
        (
            {"outcome": "refused", "steps": 3, "seconds": 9, "accuracy_after": None},
            "step 4 was refused, 3 steps in 9.0 s",
        ),
        ({"outcome": "interrupted", "accuracy_after": None, "parity_tokens": 0}, "40 steps in 3 min 12 s"),
        ({"outcome": "failed", "accuracy_after": None, "parity_tokens": 0, "steps": None}, "failed"),
        (
            {"parity_max": 0.0078125},
            "held-out accuracy 0.15 -> 0.71, parity 0.00781 over 41,235 tokens, 40 steps in 3 min 12 s",
        ),
    ],
)
def test_the_verdict(changes: dict[str, Any], expected: str) -> None:
    assert verdict(DONE | changes) == expected


def test_a_bare_summary_is_enough() -> None:
    assert verdict({"outcome": "finished"}) == "finished" and where({"outcome": "finished"}) == ""
    assert where(DONE) == "runs/smollm2-add/report.html"
    assert where(DONE | {"report": None}) == "runs/smollm2-add"
