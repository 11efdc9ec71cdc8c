"""The split and the batches: stable, disjoint, whole epochs, no state."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.config import TaskConfig
from lockstep.core import Task
from lockstep.errors import InputError
from lockstep.tasks import TaskSet, batch_of, load_tasks
from lockstep.tasks.task_set import permutation, split

seeds = st.integers(0, 2**63)


def numbered(count: int) -> list[Task]:
    return [Task(str(i), f"prompt {i}", str(i)) for i in range(count)]


def train_on(count: int) -> TaskSet:
    return TaskSet(tuple(numbered(count)), (), "exact", "")


@given(st.integers(0, 200), seeds, st.integers(0, 5))
def test_permutation_is_one_and_is_stable(count: int, seed: int, epoch: int):
    order = permutation(count, seed, "p", epoch)
    assert sorted(order.tolist()) == list(range(count))
    assert np.array_equal(order, permutation(count, seed, "p", epoch))


def test_permutation_depends_on_every_argument():
    base = permutation(50, 0, "p", 0).tolist()
    others = [permutation(50, 1, "p", 0), permutation(50, 0, "q", 0), permutation(50, 0, "p", 1)]
    assert all(other.tolist() != base for other in others)


def test_permutation_golden():
    """The orders are part of what a run is: resuming an old run needs the same ones."""
    assert permutation(8, 0, "tasks/epoch", 0).tolist() == [3, 0, 5, 7, 4, 2, 1, 6]


def test_permutations_are_uniform():
    first = Counter(int(permutation(4, seed, "p")[0]) for seed in range(2000))
    assert all(400 < first[i] < 600 for i in range(4))


@given(st.integers(2, 100), st.floats(0.01, 0.99), seeds)
def test_split_is_disjoint_complete_and_of_the_size_asked_for(count: int, fraction: float, seed: int):
    tasks = numbered(count)
    train, held_out = split("t", tasks, fraction, seed)
    assert sorted([*train, *held_out], key=lambda t: int(t.id)) == tasks
    assert len(held_out) == min(max(1, round(count * fraction)), count - 1)
    assert list(train) == [task for task in tasks if task in train]  # the given order is kept
    assert (train, held_out) == split("t", tasks, fraction, seed)


@given(st.lists(st.sampled_from("abcdef"), min_size=2), seeds)
def test_a_prompt_is_never_on_both_sides(prompts: list[str], seed: int):
    tasks = [Task(str(i), ({"role": "user", "content": prompt},)) for i, prompt in enumerate(prompts)]
    if len(set(prompts)) < 2:
        with pytest.raises(InputError, match="at least 2"):
            split("t", tasks, 0.5, seed)
        return
    train, held_out = split("t", tasks, 0.5, seed)
    assert train and held_out
    assert not {str(task.prompt) for task in train} & {str(task.prompt) for task in held_out}
    assert len(train) + len(held_out) == len(tasks)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_to_split(count: int):
    with pytest.raises(InputError, match=rf"task \(t\): .* - got {count} distinct prompts, expected at least 2"):
        split("t", numbered(count), 0.2, 0)


@given(st.integers(1, 30), st.integers(1, 12), seeds)
def test_every_epoch_is_the_whole_set(count: int, size: int, seed: int):
    tasks = train_on(count)
    steps = -(-3 * count // size)
    stream = [task.id for step in range(steps) for task in batch_of(tasks, step, size, seed)]
    for epoch in range(3):
        assert sorted(stream[epoch * count : (epoch + 1) * count]) == sorted(t.id for t in tasks.train)


@given(st.integers(1, 30), st.integers(0, 50), st.integers(1, 12), seeds)
def test_a_step_needs_no_history(count: int, step: int, size: int, seed: int):
    tasks = train_on(count)
    later = batch_of(tasks, step, size, seed)
    for earlier in range(step):
        batch_of(tasks, earlier, size, seed)
    assert batch_of(tasks, step, size, seed) == later
    assert len(later) == size


def test_epochs_and_seeds_differ():
    tasks = train_on(40)
    assert batch_of(tasks, 0, 40, seed=0) != batch_of(tasks, 1, 40, seed=0)
    assert batch_of(tasks, 0, 40, seed=0) != batch_of(tasks, 0, 40, seed=1)


def test_batches_larger_than_the_set_go_round():
    batch = batch_of(train_on(3), 0, 7, seed=0)
    assert set(Counter(task.id for task in batch).values()) == {2, 3}


@pytest.mark.parametrize(("step", "size"), [(-1, 1), (0, 0)])
def test_senseless_steps_are_our_fault(step: int, size: int):
    with pytest.raises(AssertionError):
        batch_of(train_on(3), step, size, 0)


@pytest.mark.parametrize(
    ("name", "do"),
    [
        ("adition", "Did you mean addition"),
        ("sums.csv", "Change task.name"),
        ("~nobody/sums", "Change task.name"),
        ("x" * 5000, "Change task.name"),
        ("", "Change task.name"),
        ("a\0", "Change task.name"),
    ],
)
def test_unknown_tasks(name: str, do: str):
    with pytest.raises(
        InputError, match=r"no such task - got .*, expected addition, reverse, a .jsonl or .parquet"
    ) as e:
        load_tasks(TaskConfig(name=name), 0)
    assert do in str(e.value)
