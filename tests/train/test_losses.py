"""Each objective against a formula written here in float64, token by token, and against cases computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lockstep import numerics
from lockstep.config import LossConfig
from lockstep.train.losses import LOSSES, ratio_metrics, reference_kl

LOW, HIGH = 0.2, 0.3
CONFIG = LossConfig(epsilon_low=LOW, epsilon_high=HIGH)


def evaluate(name, trainer, sampler, advantages, sequence, weights, config=CONFIG):
    """Loss, gradient with respect to the trainer's logprobs, clipped tokens."""
    leaf = torch.tensor(trainer, dtype=torch.float64, requires_grad=True)
    others = [torch.tensor(x, dtype=torch.float64) for x in (sampler, advantages)]
    out = LOSSES[name](leaf, *others, torch.tensor(sequence), torch.tensor(weights, dtype=torch.float64), config)
    out.loss.backward()
    assert out.loss.shape == ()
    assert out.clipped_N.dtype is torch.bool
    assert not out.clipped_N.requires_grad
    return out.loss.item(), leaf.grad.numpy(), out.clipped_N.tolist()


def surrogate(ratio, advantage):
    """(loss, d loss / d log ratio, outside) of PPO's clipped surrogate; the gradient is written out, not derived."""
    low, high = 1 - LOW, 1 + HIGH
    outside = not low <= ratio <= high
    if advantage >= 0:
        loss, slope = (-high * advantage, 0.0) if ratio > high else (-ratio * advantage, -ratio * advantage)
    else:
        loss, slope = (-low * advantage, 0.0) if ratio < low else (-ratio * advantage, -ratio * advantage)
    return loss, slope, outside


def expected(name, trainer, sampler, advantages, sequence, weights):
    count = len(trainer)
    loss, slope, outside = 0.0, np.zeros(count), [False] * count
    for t in range(count):
        ratio = math.exp(trainer[t] - sampler[t])
        if name in ("grpo", "ppo"):
            value, by_ratio, outside[t] = surrogate(ratio, advantages[t])
            loss += weights[t] * value
            slope[t] = weights[t] * by_ratio
        elif name == "reinforce":
            loss -= weights[t] * advantages[t] * trainer[t]
            slope[t] = -weights[t] * advantages[t]
        elif name == "cispo":
            bounded = min(max(ratio, 1 - LOW), 1 + HIGH)
            outside[t] = bounded != ratio
            loss -= weights[t] * bounded * advantages[t] * trainer[t]
            slope[t] = -weights[t] * bounded * advantages[t]
        elif name == "gspo":  # eq. 7: s = exp(mean log ratio); eq. 10: grad = s A / |y| sum of grad log p
            mine = [u for u in range(count) if sequence[u] == sequence[t]]
            s = math.exp(sum(trainer[u] - sampler[u] for u in mine) / len(mine))
            value, by_ratio, outside[t] = surrogate(s, advantages[t])
            loss += weights[t] * value
            slope[t] = sum(weights[u] for u in mine) * by_ratio / len(mine)
    return loss, slope, outside


@st.composite
def cases(draw):
    """Sequences of 1-5 tokens with one advantage each; ratios well on both sides of the interval, never on its edge."""
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    numbers = st.floats(-1.0, 1.0, allow_subnormal=False)
    sequence = [s for s, n in enumerate(lengths) for _ in range(n)]
    advantages = [a for n in lengths for a in [draw(st.sampled_from([-2.0, -0.7, 0.0, 0.3, 1.5]))] * n]
    sampler = [-2.0 + draw(numbers) for _ in sequence]
    trainer = [s + draw(numbers) for s in sampler]
    weights = [draw(st.floats(0.01, 1.0)) for _ in sequence]
    return trainer, sampler, advantages, sequence, weights


@pytest.mark.parametrize("name", sorted(LOSSES))
@given(case=cases())
def test_loss_gradient_and_clipping_follow_the_formula(name, case):
    loss, slope, outside = evaluate(name, *case)
    want_loss, want_slope, want_outside = expected(name, *case)
    assert loss == pytest.approx(want_loss, rel=1e-9, abs=1e-12)
    np.testing.assert_allclose(slope, want_slope, rtol=1e-9, atol=1e-12)
    edges = np.exp(np.array(case[0]) - np.array(case[1]))
    if min(np.abs(edges - (1 - LOW)).min(), np.abs(edges - (1 + HIGH)).min()) > 1e-9:
        assert outside == want_outside


@pytest.mark.parametrize("name", sorted(LOSSES))
@given(case=cases())
def test_on_policy_the_gradient_is_that_of_reinforce(name, case):
    trainer, _, advantages, sequence, weights = case
    even = weights if name != "gspo" else [1.0 / (sequence.count(s) * len(set(sequence))) for s in sequence]
    _, slope, outside = evaluate(name, trainer, trainer, advantages, sequence, even)
    _, plain, _ = evaluate("reinforce", trainer, trainer, advantages, sequence, even)
    assert not any(outside)
    if name == "gspo":  # a mean over the sequence: the last bit may differ
        np.testing.assert_allclose(slope, plain, rtol=1e-12)
    else:
        assert slope.tolist() == plain.tolist()


def test_the_four_corners_of_the_clipped_surrogate():
    """Ratio 2 or 1/2, advantage 1 or -1: clipping bites only where the step has gone too far in its own direction."""
    trainer, advantages = [math.log(2), math.log(2), -math.log(2), -math.log(2)], [1.0, -1.0, 1.0, -1.0]
    loss, slope, outside = evaluate("grpo", trainer, [0.0] * 4, advantages, [0, 1, 2, 3], [1.0] * 4)
    assert loss == pytest.approx(-1.3 + 2.0 - 0.5 + 0.8)
    assert slope == pytest.approx([0.0, 2.0, -0.5, 0.0])
    assert outside == [True] * 4


def test_gspo_by_hand():
    """Two tokens, log ratios 0.3 and -0.1: s = exp(0.1) is inside, though the first token alone (1.35) is not."""
    loss, slope, outside = evaluate("gspo", [0.3, -0.1], [0.0, 0.0], [2.0, 2.0], [0, 0], [0.5, 0.5])
    assert loss == pytest.approx(-math.exp(0.1) * 2.0)
    assert slope == pytest.approx([-math.exp(0.1)] * 2)
    assert outside == [False, False]
    assert evaluate("grpo", [0.3, -0.1], [0.0, 0.0], [2.0, 2.0], [0, 0], [0.5, 0.5])[2] == [True, False]


def test_gspo_clips_whole_sequences_and_only_them():
    trainer, sampler = [0.9, 0.5, 0.05, -0.05], [0.0] * 4
    loss, slope, outside = evaluate("gspo", trainer, sampler, [1.0] * 4, [0, 0, 1, 1], [0.25] * 4)
    assert outside == [True, True, False, False]
    assert slope == pytest.approx([0.0, 0.0, -0.25, -0.25])
    assert loss == pytest.approx(-0.5 * 1.3 - 0.5 * 1.0)


def test_gspo_with_sequence_weights_is_the_mean_over_sequences():
    """Lengths 1 and 3: eq. 5 of the paper, 1/G sum of the sequences' terms."""
    trainer, weights = [0.1, 0.2, -0.1, 0.05], [1 / 2, 1 / 6, 1 / 6, 1 / 6]
    loss, _, _ = evaluate("gspo", trainer, [0.0] * 4, [1.0, -2.0, -2.0, -2.0], [0, 1, 1, 1], weights)
    assert loss == pytest.approx((-math.exp(0.1) * 1.0 + math.exp(0.05) * 2.0) / 2)


def test_cispo_keeps_a_gradient_where_grpo_has_none():
    case = ([math.log(3)], [0.0], [1.0], [0], [1.0])
    assert evaluate("grpo", *case)[1] == pytest.approx([0.0])
    assert evaluate("cispo", *case)[1] == pytest.approx([-1.3])
    assert evaluate("cispo", *case)[2] == [True]


def test_the_bounds_of_the_config_are_used():
    narrow = LossConfig(epsilon_low=0.01, epsilon_high=0.02)
    case = ([0.015, 0.03, -0.005, -0.02], [0.0] * 4, [1.0] * 4, [0, 1, 2, 3], [1.0] * 4)
    for name in ("grpo", "gspo", "ppo", "cispo"):
        assert evaluate(name, *case, narrow)[2] == [False, True, False, True], name
        assert evaluate(name, *case, LossConfig(epsilon_low=0.5, epsilon_high=0.5))[2] == [False] * 4, name


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_losses_of_parts_add_up(name):
    """Weights are those of the whole batch: microbatches just add."""
    draw = np.random.default_rng(3)
    trainer, sampler = draw.normal(-2, 0.3, (2, 7))
    advantages, weights = np.repeat([1.0, -1.0, 0.5], [2, 3, 2]), np.full(7, 1 / 7)
    whole = evaluate(name, trainer, sampler, advantages, [0, 0, 1, 1, 1, 2, 2], weights)
    first = evaluate(name, trainer[:5], sampler[:5], advantages[:5], [0, 0, 1, 1, 1], weights[:5])
    second = evaluate(name, trainer[5:], sampler[5:], advantages[5:], [0, 0], weights[5:])
    assert first[0] + second[0] == pytest.approx(whole[0])
    assert [*first[1], *second[1]] == pytest.approx(list(whole[1]))
    assert first[2] + second[2] == whole[2]


@given(st.lists(st.tuples(st.floats(-9, 0), st.floats(-9, 0)), min_size=1))
def test_the_kl_to_the_reference_is_k3_and_pulls_towards_it(pairs):
    trainer, reference = (np.array(column) for column in zip(*pairs, strict=True))
    leaf = torch.tensor(trainer, requires_grad=True)
    divergence = reference_kl(leaf, torch.tensor(reference))
    np.testing.assert_allclose(divergence.detach(), numerics.k3(reference - trainer), rtol=1e-12, atol=1e-15)
    assert (divergence >= 0).all()
    divergence.sum().backward()
    np.testing.assert_allclose(leaf.grad, 1 - np.exp(reference - trainer), rtol=1e-9, atol=1e-12)


def test_metrics_by_hand():
    got = ratio_metrics(np.log([2.0, 0.5]), np.log([1.0, 1.0]), np.array([True, False]))
    assert got == pytest.approx(
        {
            "ratio_new_old": 1.25,
            "kl_new_old": ((2 - math.log(2) - 1) + (0.5 + math.log(2) - 1)) / 2,
            "mean_abs_log_ratio_new_old": math.log(2),
            "clamp_log_ratio_new_old_indicator": 0.5,
            "ess": 2.5**2 / (2 * 4.25),
        }
    )


@given(st.lists(st.floats(-30, 0, width=32), min_size=1))
def test_metrics_on_policy_are_exact(values):
    logprobs = np.array(values, np.float32)
    got = ratio_metrics(logprobs, logprobs.copy(), np.zeros(len(values), bool))
    assert got["ratio_new_old"] == 1.0
    assert got["kl_new_old"] == 0.0
    assert got["mean_abs_log_ratio_new_old"] == 0.0
    assert got["clamp_log_ratio_new_old_indicator"] == 0.0
    assert got["ess"] == 1.0


def test_metrics_are_float64_and_survive_wild_ratios():
    """A float32 mean over a million tokens would lose the one that differs; a broken engine may be off by thousands."""
    trainer, sampler = np.zeros(10**6, np.float32), np.zeros(10**6, np.float32)
    trainer[0] = 1e-3
    clipped = np.zeros(10**6, bool)
    got = ratio_metrics(trainer, sampler, clipped)["mean_abs_log_ratio_new_old"]
    assert got == pytest.approx(float(np.float32(1e-3)) * 1e-6, rel=1e-9)
    wild = ratio_metrics(np.array([0.0, 0.0]), np.array([-2000.0, 0.0]), np.array([True, False]))
    assert wild["ratio_new_old"] == math.inf
    assert wild["ess"] == pytest.approx(0.5)
