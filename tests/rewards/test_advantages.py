"""Advantages by hand, by property and against TRL's formula in torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from lockstep.errors import NumericsError
from lockstep.rewards.advantages import ADVANTAGES, LARGEST, advantages

kinds = st.sampled_from(sorted(ADVANTAGES))
reward = st.floats(-100, 100, width=32)
some_rewards = st.lists(reward, min_size=2, max_size=12)


def one_group(rewards: Sequence[float | None], kind: str) -> np.ndarray:
    return advantages(rewards, ["g"] * len(rewards), kind).values


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("group_centered", [0.75, -0.25, -0.25, -0.25]),
        ("leave_one_out", [1.0, -1 / 3, -1 / 3, -1 / 3]),
        ("group", [0.75 / 0.5001, -0.25 / 0.5001, -0.25 / 0.5001, -0.25 / 0.5001]),  # std of 1,0,0,0 with n - 1 is 0.5
    ],
)
def test_by_hand(kind: str, expected: list[float]):
    values = one_group([1.0, 0.0, 0.0, 0.0], kind)
    assert values.dtype == np.float32
    assert values.tolist() == np.array(expected, np.float32).tolist()


def test_groups_are_compared_among_themselves_only():
    rewards = [1.0, 10.0, 0.0, 30.0]
    result = advantages(rewards, ["a", "b", "a", "b"], "group_centered")
    assert result.values.tolist() == [0.5, -10.0, -0.5, 10.0]
    assert result.reward_std == pytest.approx((math.sqrt(0.5) + math.sqrt(200)) / 2)
    assert result.frac_reward_zero_std == 0.0


def test_undecided_rollouts_are_set_aside_and_flagged():
    result = advantages([1.0, None, 0.0, None, None, 5.0], [0, 0, 0, 1, 1, 1], "leave_one_out")
    assert result.values.tolist() == [1.0, 0.0, -1.0, 0.0, 0.0, 0.0]
    assert result.undecided.tolist() == [False, True, False, True, True, False]
    assert result.frac_reward_zero_std == 0.5  # of the second group one decided reward is left: nothing to compare


def test_undecided_is_not_zero():
    """The fault it guards against: a failed check counted as a wrong answer."""
    assert one_group([1.0, None], "group_centered").tolist() == [0.0, 0.0]
    assert one_group([1.0, 0.0], "group_centered").tolist() == [0.5, -0.5]
    assert one_group([1.0, 1.0, None, None], "group").tolist() == [0.0] * 4


@pytest.mark.parametrize("value", [0.1, 0.7, 1 / 3, -0.0, 1e-30, LARGEST])
@pytest.mark.parametrize("count", [2, 3, 7, 10])
@pytest.mark.parametrize("kind", sorted(ADVANTAGES))
def test_ties_are_exactly_zero(value: float, count: int, kind: str):
    result = advantages([value] * count, ["g"] * count, kind)
    assert result.values.tobytes() == np.zeros(count, np.float32).tobytes()
    assert (result.frac_reward_zero_std, result.reward_std) == (1.0, 0.0)


def test_signed_zeros_tie():
    assert one_group([0.0, -0.0], "group").tolist() == [0.0, 0.0]


def test_no_rollouts():
    result = advantages([], [], "group")
    assert (len(result.values), result.reward_std, result.frac_reward_zero_std) == (0, 0.0, 0.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 2 * LARGEST])
def test_what_is_not_finite_is_refused(value: float):
    with pytest.raises(
        NumericsError, match=r"reward \(1\): a reward is finite - got (nan|inf|-inf|2e\+30), expected a"
    ):
        advantages([0.0, value], [0, 0], "group")


@pytest.mark.parametrize("kind", sorted(ADVANTAGES))
def test_the_largest_rewards_stay_finite(kind: str):
    result = advantages([LARGEST, -LARGEST], [0, 0], kind)
    assert np.isfinite(result.values).all() and math.isfinite(result.reward_std)
    assert result.values[0] == -result.values[1] > 0


def test_lengths_that_differ_are_our_fault():
    with pytest.raises(AssertionError, match="2 rewards for 1 rollouts"):
        advantages([0.0, 1.0], [0], "group")


@given(st.lists(some_rewards.filter(lambda r: len(r) >= 4).map(lambda r: r[:4]), min_size=1, max_size=4))
def test_group_is_trls_formula(groups: list[list[float]]):
    rewards = torch.tensor(groups, dtype=torch.float64)
    expected = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    flat = [value for values in groups for value in values]
    result = advantages(flat, [i // 4 for i in range(len(flat))], "group")
    np.testing.assert_allclose(result.values, expected.flatten().numpy(), rtol=1e-6, atol=1e-6)
    assert result.reward_std == pytest.approx(rewards.std(1).mean().item(), abs=1e-12)


@given(some_rewards)
def test_leave_one_out_is_the_mean_of_the_others(rewards: list[float]):
    values = one_group(rewards, "leave_one_out")
    for i, value in enumerate(values):
        others = rewards[:i] + rewards[i + 1 :]
        assert value == pytest.approx(rewards[i] - sum(others) / len(others), rel=1e-6, abs=1e-4)


@given(some_rewards, kinds)
def test_they_sum_to_zero(rewards: list[float], kind: str):
    values = one_group(rewards, kind).astype(np.float64)
    assert abs(values.sum()) <= 1e-6 * (np.abs(values).sum() + 1e-6)


@given(some_rewards, st.integers(-64, 64), kinds)
def test_a_shift_changes_nothing(rewards: list[float], shift: int, kind: str):
    rewards = [round(value) for value in rewards]  # whole numbers, so that the shifted ones are exact
    moved = one_group([value + shift for value in rewards], kind)
    np.testing.assert_allclose(moved, one_group(rewards, kind), rtol=1e-5, atol=1e-6)


@given(st.data(), some_rewards, kinds)
def test_order_moves_with_the_rollouts_to_the_last_bit(data: st.DataObject, rewards: list[float], kind: str):
    rollouts: list[tuple[float | None, int]] = [(r, data.draw(st.integers(0, 2))) for r in rewards]
    rollouts = [(None if data.draw(st.booleans()) and data.draw(st.booleans()) else r, g) for r, g in rollouts]
    order = data.draw(st.permutations(range(len(rollouts))))
    straight = advantages([r for r, _ in rollouts], [g for _, g in rollouts], kind)
    moved = advantages([rollouts[i][0] for i in order], [rollouts[i][1] for i in order], kind)
    assert moved.values.tobytes() == straight.values[order].tobytes()
    assert moved.undecided.tolist() == straight.undecided[order].tolist()
    assert (moved.reward_std, moved.frac_reward_zero_std) == (straight.reward_std, straight.frac_reward_zero_std)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [0, 2, 1, 3], [1, 3, 0, 2]])
def test_sums_are_exact(order: list[int]):
    """Added up in the wrong order, a 1 is lost beside 1e16, and with it half of the mean."""
    rewards = [1e16, 1.0, -1e16, 1.0]
    values = one_group([rewards[i] for i in order], "group_centered")
    assert [values[order.index(i)] for i in (1, 3)] == [0.5, 0.5]


@given(some_rewards, kinds)
def test_the_better_rollout_never_has_the_smaller_advantage(rewards: list[float], kind: str):
    values = one_group(rewards, kind)
    order = np.argsort(np.array(rewards), kind="stable")
    assert (np.diff(values[order]) >= 0).all()


@given(some_rewards, st.integers(1, 5), kinds)
def test_an_undecided_rollout_changes_nothing_for_the_others(rewards: list[float], count: int, kind: str):
    alone = one_group(rewards, kind)
    beside = one_group([*rewards, *[None] * count], kind)
    assert beside.tobytes() == alone.tobytes() + np.zeros(count, np.float32).tobytes()


@given(some_rewards)
def test_scale_matters_to_all_but_group(rewards: list[float]):
    assume(np.std(rewards) > 1)
    doubled = [2 * value for value in rewards]
    np.testing.assert_allclose(
        one_group(doubled, "group_centered"), 2 * one_group(rewards, "group_centered"), rtol=1e-6
    )
    np.testing.assert_allclose(one_group(doubled, "group"), one_group(rewards, "group"), rtol=1e-3)
