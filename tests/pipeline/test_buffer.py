"""The bound on age under chaos: engines that fall behind, results in any order, groups that are lost."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.core import Contract, Logprobs, Provenance, Rollout, SamplingParams
from lockstep.pipeline.buffer import Buffer

CONTRACT = Contract("processed", 1.0, "full", "float32", (0,))


def rollout(number: int, place: int, versions: list[int]) -> Rollout:
    count = len(versions)
    return Rollout(
        f"{number}/{place}", "t", np.array([1], np.int32), np.ones(count, np.int32), "", "length", SamplingParams(),
        Logprobs(np.zeros(count, np.float32), CONTRACT),
        Provenance(np.array(versions, np.int32), np.zeros(count, np.uint8), np.zeros(count, bool)),
    )  # fmt: skip


class Chaos:
    """An engine and a trainer without a model: everything that may happen in any order happens in some order."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        r = self.random.randint
        self.per_step, self.size, self.max_lag, self.steps = r(1, 3), r(1, 3), r(0, 4), r(1, 8)
        self.versions_per_step = r(1, 2)
        self.buffer = Buffer(self.per_step, self.size, self.max_lag, self.versions_per_step)
        self.trainer = self.engine = 0
        self.behind = self.random.random() < 0.5  # this engine takes up new weights late
        self.open: dict[tuple[int, int], list[int]] = {}  # samples in flight: versions of their tokens so far
        self.lengths: dict[tuple[int, int], int] = {}
        self.consumed: list[int] = []
        self.lost: list[int] = []
        self.violations = 0
        self.dropped = 0

    def run(self) -> None:
        done = 0
        while done < self.steps:
            self.issue(self.steps - done)
            self.decode()
            if self.random.random() < 0.02 and self.buffer.outstanding:
                self.lose(self.random.choice(self.buffer.outstanding))
            groups = self.buffer.take(self.trainer)
            self.buffer.check()
            self.dropped += self.buffer.take_dropped().groups
            if groups is not None:
                done += 1
                self.consume(groups)
            if not self.behind or self.random.random() < 0.1:
                self.engine = self.trainer

    def issue(self, steps_ahead: int) -> None:
        for number in self.buffer.issue(steps_ahead):
            for place in range(self.size):
                self.open[number, place] = []
                self.lengths[number, place] = self.random.randint(1, 12)

    def decode(self) -> None:
        for key in self.random.sample(sorted(self.open), k=self.random.randint(0, len(self.open))):
            self.open[key].append(self.engine)
            if len(self.open[key]) == self.lengths[key]:
                self.buffer.put(*key, rollout(*key, self.open.pop(key)))

    def lose(self, number: int) -> None:
        self.buffer.drop(number)
        self.lost.append(number)
        self.open = {key: versions for key, versions in self.open.items() if key[0] != number}

    def consume(self, groups) -> None:
        for group in groups:
            for sample in group.rollouts:
                age = self.trainer - sample.provenance.weight_version
                self.violations += int((age > self.max_lag * self.versions_per_step).sum())
        self.consumed += [group.number for group in groups]
        self.trainer += self.versions_per_step


def test_a_thousand_chaotic_schedules_break_the_bound_for_no_token() -> None:
    violations = dropped_by_late_engines = 0
    for seed in range(1000):
        chaos = Chaos(seed)
        chaos.run()
        violations += chaos.violations
        assert chaos.consumed == sorted(set(chaos.consumed)), "in order, none twice"
        assert len(chaos.consumed) == chaos.steps * chaos.per_step
        gone = chaos.dropped - len(chaos.lost)
        assert chaos.behind or gone == 0, "with an engine that keeps up, the bound holds by itself: nothing is dropped"
        dropped_by_late_engines += gone
        left = chaos.buffer.next_number - len(chaos.consumed) - chaos.dropped
        assert left == len(chaos.buffer.outstanding) + chaos.buffer.num_whole, "none lost"
    assert violations == 0
    assert dropped_by_late_engines > 100, "the chaos is worth its name"


@pytest.mark.parametrize(("max_lag", "ahead", "expected"), [(0, 9, 2), (3, 9, 8), (3, 2, 4), (3, 0, 0)])
def test_no_more_is_asked_for_than_the_bound_and_the_end_of_the_run_allow(max_lag, ahead, expected) -> None:
    buffer = Buffer(2, 1, max_lag)
    assert len(buffer.issue(ahead)) == expected
    assert buffer.issue(ahead) == ()


def test_short_answers_do_not_overtake() -> None:
    buffer = Buffer(1, 1, 2)
    assert buffer.issue(9) == (0, 1, 2)
    buffer.put(2, 0, rollout(2, 0, [0]))
    assert buffer.take(0) is None
    buffer.put(0, 0, rollout(0, 0, [0]))
    assert [group.number for group in buffer.take(0) or ()] == [0]


def test_a_group_that_is_too_old_is_dropped_counted_and_replaced() -> None:
    buffer = Buffer(1, 2, 1)
    assert buffer.issue(9) == (0, 1)
    for number in (0, 1):
        for place in (0, 1):
            buffer.put(number, place, rollout(number, place, [number * 3, 5]))
    groups = buffer.take(4)
    assert [group.number for group in groups or ()] == [1]
    dropped = buffer.take_dropped()
    assert (dropped.groups, dropped.tokens) == (1, 4)
    assert buffer.take_dropped().groups == 0
    assert buffer.issue(9) == (2, 3)


def test_a_sample_that_comes_twice_is_our_fault() -> None:
    buffer = Buffer(1, 2, 0)
    buffer.issue(1)
    buffer.put(0, 1, rollout(0, 1, [0]))
    with pytest.raises(AssertionError, match="came twice"):
        buffer.put(0, 1, rollout(0, 1, [0]))


@settings(max_examples=50, deadline=None)
@given(st.permutations([(n, p) for n in range(4) for p in range(3)]))
def test_the_order_of_arrival_does_not_matter(order) -> None:
    buffer = Buffer(2, 3, 1)
    buffer.issue(2)
    for number, place in order:
        buffer.put(number, place, rollout(number, place, [0]))
    batches = [buffer.take(0), buffer.take(0)]
    ids = [[r.id for group in batch or () for r in group.rollouts] for batch in batches]
    assert ids == [[f"{n}/{p}" for n in pair for p in range(3)] for pair in ((0, 1), (2, 3))]
