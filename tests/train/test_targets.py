"""What the head is told: all tokens or some, in order, each with its own support."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lockstep.core import SamplingParams, Support
from lockstep.train.targets import cut_support, histories_of, join_supports, targets_of

TRUNCATED = SamplingParams(temperature=0.5, top_k=3)


def support(*kept: list[int]) -> Support:
    sizes = [len(ids) for ids in kept]
    return Support(np.concatenate(kept).astype(np.int32), np.concatenate(([0], np.cumsum(sizes))))


def lists(kept: Support | None) -> list[list[int]]:
    assert kept is not None
    return [kept.ids[a:b].tolist() for a, b in zip(kept.offsets[:-1], kept.offsets[1:], strict=True)]


def test_all_tokens_of_consecutive_rollouts(make):
    first = make.rollout(tokens=(8, 9), params=TRUNCATED, kept=[[8, 1], [9, 2, 3]])
    second = make.rollout(tokens=(4,), params=TRUNCATED, kept=[[5, 4]], name="r1")
    targets = targets_of([second, first])
    assert (targets.ids_N.tolist(), targets.ids_N.dtype) == ([4, 8, 9], torch.int64)
    assert targets.temperature == 0.5
    assert lists(targets.support) == [[5, 4], [8, 1], [9, 2, 3]]


def test_some_tokens_bring_their_own_supports(make):
    first = make.rollout(tokens=(8, 9, 7), params=TRUNCATED, kept=[[8, 1], [9, 2, 3], [7]])
    second = make.rollout(tokens=(4, 6), params=TRUNCATED, kept=[[5, 4], [6, 8]], name="r1")
    targets = targets_of([first, second], tokens=[range(1, 3), range(1)])
    assert targets.ids_N.tolist() == [9, 7, 4]
    assert lists(targets.support) == [[9, 2, 3], [7], [5, 4]]


def test_nothing_truncated_is_no_support(make):
    assert targets_of([make.rollout()]).support is None
    assert join_supports([]) is None


ADJUSTED = SamplingParams(temperature=0.5, presence_penalty=0.5)


def past(targets):
    return [None if h is None else (h.prompt.tolist(), h.completion.tolist()) for h in targets.histories]


def test_a_token_comes_after_the_prompt_and_what_was_drawn_before_it(make):
    first = make.rollout((5, 6), tokens=(8, 9, 7), params=ADJUSTED)
    second = make.rollout((4,), tokens=(3, 2), params=ADJUSTED, name="r1")
    targets = targets_of([first, second])
    assert past(targets) == [([5, 6], []), ([5, 6], [8]), ([5, 6], [8, 9]), ([4], []), ([4], [3])]
    assert all(history is not None and history.params is ADJUSTED for history in targets.histories)
    some = targets_of([first, second], tokens=[range(2, 3), range(1, 2)])
    assert past(some) == [([5, 6], [8, 9]), ([4], [3])]


def test_nothing_adjusted_is_no_history(make):
    assert list(targets_of([make.rollout()]).histories) == []
    assert histories_of(make.rollout(), range(1, 2)) == [None]


def test_targets_of_nothing_are_a_mistake_of_ours():
    with pytest.raises(AssertionError, match="targets of nothing"):
        targets_of([])


@given(st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=5), min_size=1, max_size=8), st.data())
def test_a_cut_anywhere_and_joined_again_is_the_whole(kept, data):
    cut = data.draw(st.integers(0, len(kept)))
    whole = support(*kept)
    parts = [cut_support(whole, range(cut)), cut_support(whole, range(cut, len(kept)))]
    assert lists(parts[0]) == kept[:cut]
    assert lists(parts[1]) == kept[cut:]
    again = join_supports(parts)
    assert lists(again) == kept
