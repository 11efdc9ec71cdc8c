"""The reward of a check."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lockstep.checks import find
from lockstep.core import Contract, Logprobs, Provenance, Rollout, SamplingParams, Task, Verdict
from lockstep.errors import InputError, Interrupted
from lockstep.rewards import VerifiableReward, load_reward

TASK = Task("add/5+7", "What is 5 + 7?", "12")
UNKNOWN = Task("open", "Why?")


def rollout(text: str, task: Task = TASK, name: str = "r0") -> Rollout:
    ids = np.arange(len(text) + 1, dtype=np.int32)
    contract = Contract("processed", 1.0, "full", "float32", (0,))
    logprobs = Logprobs(np.full(len(ids), -1.0, np.float32), contract)
    origin = Provenance(np.zeros(len(ids), np.int32), np.zeros(len(ids), np.uint8), np.zeros(len(ids), bool))
    return Rollout(name, task.id, np.array([1], np.int32), ids, text, "stop", SamplingParams(), logprobs, origin)


class Says:
    """A check that gives, or raises, what it is made with."""

    def __init__(self, outcome: object) -> None:
        self.outcome = outcome

    def check(self, task: Task, text: str) -> Verdict:
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome  # type: ignore[return-value]


def test_right_wrong_and_undecided():
    reward = VerifiableReward(find("last_integer"))
    grades = reward.grade([TASK, TASK, UNKNOWN], [rollout("12"), rollout("13"), rollout("12", UNKNOWN)])
    assert [grade.reward.value for grade in grades] == [1.0, 0.0, None]
    assert [dict(grade.reward.parts) for grade in grades] == [
        {"last_integer": 1.0},
        {"last_integer": 0.0},
        {"last_integer": None},
    ]
    assert [grade.verdict and grade.verdict.status for grade in grades] == ["pass", "fail", "abstain"]
    assert all(grade.verdict and grade.verdict.check == "last_integer@1" for grade in grades)


@pytest.mark.parametrize("status", ["abstain", "error", "maybe", "PASS"])
def test_only_pass_and_fail_are_rewards(status: str):
    verdict = Verdict(status, "code", "says@1")  # type: ignore[arg-type]
    (grade,) = VerifiableReward(Says(verdict)).grade([TASK], [rollout("12")])
    assert grade.reward.value is None


def test_what_a_verdict_cost_is_measured():
    (grade,) = VerifiableReward(find("exact")).grade([TASK], [rollout("12" * 1000)])
    assert grade.verdict is not None
    assert 0 < grade.verdict.seconds < math.inf


@pytest.mark.parametrize(
    ("outcome", "code"),
    [(ZeroDivisionError("by zero"), "ZeroDivisionError"), (None, "AttributeError"), (1.0, "AttributeError")],
)
def test_a_check_that_fails_is_data(outcome: object, code: str):
    right, broken = VerifiableReward(find("exact")), VerifiableReward(Says(outcome))
    (grade,) = broken.grade([TASK], [rollout("12")])
    assert grade.reward.value is None
    assert dict(grade.reward.parts) == {"Says": None, f"error/{code}": None}
    assert grade.verdict is not None
    assert (grade.verdict.status, grade.verdict.code) == ("error", code)
    assert "check (Says, rollout r0)" in grade.verdict.witness
    assert right.grade([TASK], [rollout("12")])[0].reward.value == 1.0


@pytest.mark.parametrize("stop", [Interrupted("stop"), KeyboardInterrupt()])
def test_a_stop_is_a_stop(stop: BaseException):
    with pytest.raises(type(stop)):
        VerifiableReward(Says(stop)).grade([TASK], [rollout("12")])


def test_rollouts_meet_their_own_task():
    with pytest.raises(AssertionError, match=r"rollout r0 is of task add/5\+7, not open"):
        VerifiableReward(find("exact")).grade([UNKNOWN], [rollout("12")])
    with pytest.raises(AssertionError, match="1 tasks for 0 rollouts"):
        VerifiableReward(find("exact")).grade([TASK], [])


def test_without_a_function_the_tasks_own_check_rewards():
    check = find("last_integer")
    assert load_reward("", check) == VerifiableReward(check)
    with pytest.raises(InputError):
        load_reward("no.such.function", check)
