"""The words written backwards."""

from __future__ import annotations

import time

import pytest

from lockstep.checks import find
from lockstep.config import TaskConfig
from lockstep.core import Task
from lockstep.errors import InputError
from lockstep.tasks import load_tasks
from lockstep.tasks.reverse import MAX_WORDS


def words(seed: int = 0, **settings: object):
    return load_tasks(TaskConfig.model_validate({"name": "reverse", **settings}), seed)


def test_every_word_once():
    tasks = words(length=3, letters=4)
    both = tasks.train + tasks.held_out
    assert len(both) == len({task.prompt for task in both}) == 64
    assert len(tasks.held_out) == 13  # a fifth, rounded
    assert Task("reverse/abc", "abc>", "cba") in both
    assert tasks.mapping == "built-in: all words of 3 letters from abcd"


def test_the_check_is_exact():
    tasks = words(length=4, letters=2)
    assert tasks.check == "exact"
    task = Task("reverse/abcd", "abcd>", "dcba")
    assert find(tasks.check).check(task, "dcba").status == "pass"
    assert find(tasks.check).check(task, "dcbaa").status == "fail"


def test_more_words_than_fit_are_drawn_by_the_seed():
    tasks = words(length=12, letters=26)
    both = tasks.train + tasks.held_out
    assert len(both) == len({task.id for task in both}) == MAX_WORDS
    assert all(isinstance(t.prompt, str) and len(t.prompt) == 13 and t.answer == t.prompt[-2::-1] for t in both)
    assert words(length=12, letters=26) == tasks
    assert words(length=12, letters=26, seed=1) != tasks
    letters = "".join(task.answer or "" for task in both)
    counts = [letters.count(letter) / len(letters) for letter in set(letters)]
    assert len(counts) == 26
    assert max(counts) < 1.1 / 26


def test_the_boundary_between_all_and_drawn():
    assert len(words(length=1, letters=26).train) == 21
    drawn = words(length=3, letters=22)  # 10,648 words: the draw meets some twice
    both = drawn.train + drawn.held_out
    assert 6000 < len(both) == len({task.id for task in both}) < MAX_WORDS


def test_long_words_are_refused_at_once():
    start = time.process_time()
    with pytest.raises(InputError, match=r"task \(reverse\): words are short - got 1000000, expected at most 256"):
        words(length=1_000_000, letters=26)
    assert time.process_time() - start < 5  # of the order of milliseconds, not of 26 ** 1000000
