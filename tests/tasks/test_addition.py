"""The addition problems and their split."""

from __future__ import annotations

import pytest

from lockstep.checks import find
from lockstep.config import TaskConfig
from lockstep.core import Task
from lockstep.errors import InputError
from lockstep.tasks import load_tasks


def sums(seed: int = 0, **settings: object):
    return load_tasks(TaskConfig.model_validate({"name": "addition", **settings}), seed)


def test_four_hundred_sums_a_fifth_of_them_held_out():
    tasks = sums()
    assert (len(tasks.train), len(tasks.held_out)) == (320, 80)
    pairs = {(task.metadata["a"], task.metadata["b"]) for task in tasks.train + tasks.held_out}
    assert pairs == {(a, b) for a in range(1, 21) for b in range(1, 21)}
    assert tasks.mapping == "built-in: 400 sums of 1..20"


def test_the_prompt_word_for_word():
    tasks = {task.id: task for task in sums().train + sums().held_out}
    assert len(tasks) == 400
    assert tasks["add/3+14"] == Task(
        "add/3+14",
        ({"role": "user", "content": "What is 3 + 14? Answer with just the number."},),
        "17",
        {"a": 3, "b": 14},
    )


def test_every_answer_passes_its_own_check_and_no_other():
    tasks = sums()
    check = find(tasks.check)
    for task in tasks.train + tasks.held_out:
        right = task.metadata["a"] + task.metadata["b"]
        assert check.check(task, f"The answer is {right}.").status == "pass"
        assert check.check(task, f"The answer is {right + 1}.").status == "fail"


def test_the_split_is_the_same_for_ever():
    """Golden: a change here would train on what an earlier run held out."""
    held_out = [task.id for task in sums(seed=0).held_out]
    assert held_out[:5] == ["add/1+9", "add/1+14", "add/1+15", "add/1+16", "add/1+18"]
    assert sums(seed=0) == sums(seed=0)
    assert {t.id for t in sums(seed=0).held_out} != {t.id for t in sums(seed=1).held_out}


def test_negative_operands():
    tasks = sums(low=-2, high=1)
    assert len(tasks.train) + len(tasks.held_out) == 16
    check = find(tasks.check)
    task = next(t for t in tasks.train + tasks.held_out if t.id == "add/-2+-1")
    assert task.prompt[0]["content"] == "What is -2 + -1? Answer with just the number."  # type: ignore[index]
    assert check.check(task, "-3").status == "pass"
    assert check.check(task, "3").status == "fail"


@pytest.mark.parametrize(("low", "high"), [(2, 1), (0, 1000), (-(10**9), 10**9)])
def test_ranges_that_are_empty_or_huge(low: int, high: int):
    with pytest.raises(InputError, match=rf"task \(addition\): .* - got {low}\.\.{high}, expected low <= high"):
        sums(low=low, high=high)


def test_one_sum_cannot_be_split():
    with pytest.raises(InputError, match="got 1 distinct prompts, expected at least 2"):
        sums(low=3, high=3)
