"""Masters, moments, clipping, warm-up and publishing, against AdamW written out in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lockstep.config import OptimConfig
from lockstep.errors import NumericsError
from lockstep.train.optimizer import Optimizer


def leaves(dtype=torch.float32, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {
        "matrix": torch.randn(5, 3, generator=draw).to(dtype),
        "gain": torch.randn(7, generator=draw).to(dtype),
    }


def push(optimizer, grads):
    """Let autograd put these gradients on the leaves, as a backward pass would."""
    sum((optimizer.leaves[n] * g.to(optimizer.leaves[n].dtype)).sum() for n, g in grads.items()).backward()


def step(optimizer, grads, lr):
    push(optimizer, grads)
    return optimizer.apply(optimizer.require_finite(), lr)


def gradients(seed, scale=1.0):
    return {name: scale * leaf for name, leaf in leaves(seed=seed + 100).items()}


class Oracle:
    """AdamW (Loshchilov & Hutter 2019, algorithm 2) in float64, with clipping by the global norm."""

    def __init__(self, params, config):
        self.w = {n: p.double().numpy().copy() for n, p in params.items()}
        self.m = {n: np.zeros_like(w) for n, w in self.w.items()}
        self.v = {n: np.zeros_like(w) for n, w in self.w.items()}
        self.config, self.t = config, 0

    def step(self, grads, lr):
        c, self.t = self.config, self.t + 1
        grads = {n: g.double().numpy() for n, g in grads.items()}
        norm = math.sqrt(sum((g**2).sum() for g in grads.values()))
        factor = min(1.0, c.max_grad_norm / norm)
        b1, b2 = c.betas
        for n, g in grads.items():
            self.m[n] = b1 * self.m[n] + (1 - b1) * g * factor
            self.v[n] = b2 * self.v[n] + (1 - b2) * (g * factor) ** 2
            decay = c.weight_decay if self.w[n].ndim >= 2 else 0.0
            ahead = (self.m[n] / (1 - b1**self.t)) / (np.sqrt(self.v[n] / (1 - b2**self.t)) + c.eps)
            self.w[n] = self.w[n] * (1 - lr * decay) - lr * ahead
        return norm


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_steps_follow_adamw(decay, max_norm):
    config = OptimConfig(weight_decay=decay, max_grad_norm=max_norm)
    optimizer, oracle = Optimizer(leaves(), config), Oracle(leaves(), config)
    for i in range(5):
        push(optimizer, gradients(i))
        norm = optimizer.require_finite()
        assert norm == pytest.approx(oracle.step(gradients(i), 1e-2), rel=1e-6)
        assert optimizer.apply(norm, 1e-2) == 1e-2
    for name, master in optimizer.masters.items():
        np.testing.assert_allclose(master.numpy(), oracle.w[name], rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(optimizer.moments()[f"exp_avg.{name}"].numpy(), oracle.m[name], rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(optimizer.moments()[f"exp_avg_sq.{name}"].numpy(), oracle.v[name], rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_is_published_is_the_rounded_master_in_the_very_same_memory(dtype):
    optimizer = Optimizer(leaves(dtype), OptimConfig())
    held = {name: (leaf, leaf.data_ptr(), leaf.detach().clone()) for name, leaf in optimizer.leaves.items()}
    step(optimizer, gradients(0), 1e-2)
    for name, (leaf, address, before) in held.items():
        assert optimizer.leaves[name] is leaf
        assert leaf.data_ptr() == address
        assert leaf.dtype is dtype
        assert torch.equal(leaf, optimizer.masters[name].to(dtype))
        assert not torch.equal(leaf, before)
        assert optimizer.masters[name].dtype is torch.float32


def test_masters_remember_what_bf16_cannot_show():
    """Steps of 1e-4 at a weight of 1 are lost in bf16 (spacing 2^-8); enough of them move the published weight."""
    optimizer = Optimizer({"w": torch.ones(4, dtype=torch.bfloat16)}, OptimConfig(max_grad_norm=1e6))
    step(optimizer, {"w": torch.ones(4)}, 1e-4)
    assert optimizer.leaves["w"].tolist() == [1.0] * 4
    assert (optimizer.masters["w"] < 1.0).all()
    for _ in range(49):
        step(optimizer, {"w": torch.ones(4)}, 1e-4)
    assert (optimizer.leaves["w"] < 1.0).all()


def test_gradients_of_microbatches_are_summed_in_fp32_and_leave_the_leaves():
    """In bf16, 256 + 1 is 256: a sum kept there would stand still."""
    optimizer = Optimizer({"w": torch.ones(3, dtype=torch.bfloat16)}, OptimConfig())
    for _ in range(300):
        push(optimizer, {"w": torch.ones(3)})
        assert optimizer.leaves["w"].grad is None
    assert optimizer.masters["w"].grad.dtype is torch.float32
    assert optimizer.masters["w"].grad.tolist() == [300.0] * 3
    assert optimizer.require_finite() == pytest.approx(math.sqrt(3) * 300)
    optimizer.zero()
    assert optimizer.masters["w"].grad is None
    assert optimizer.require_finite() == 0.0


def test_a_step_without_a_gradient_is_an_identity_at_the_start():
    optimizer = Optimizer(leaves(), OptimConfig())
    before = {n: m.clone() for n, m in optimizer.masters.items()}
    optimizer.apply(optimizer.require_finite(), 1e-2)
    assert all(torch.equal(before[n], m) for n, m in optimizer.masters.items())
    assert optimizer.steps == 1


def test_a_learning_rate_of_zero_moves_nothing():
    optimizer = Optimizer(leaves(torch.bfloat16), OptimConfig(weight_decay=0.5))
    before = {n: leaf.detach().clone() for n, leaf in optimizer.leaves.items()}
    assert step(optimizer, gradients(1), 0.0) == 0.0
    assert all(torch.equal(before[n], leaf) for n, leaf in optimizer.leaves.items())


def test_decay_is_for_matrices_only():
    optimizer = Optimizer(leaves(), OptimConfig(weight_decay=0.1))
    before = {n: m.clone() for n, m in optimizer.masters.items()}
    optimizer.apply(optimizer.require_finite(), 0.5)
    torch.testing.assert_close(optimizer.masters["matrix"], before["matrix"] * 0.95)
    assert torch.equal(optimizer.masters["gain"], before["gain"])


@pytest.mark.parametrize(("warmup", "rates"), [(0, [1.0, 1.0, 1.0]), (1, [1.0, 1.0, 1.0]), (4, [0.25, 0.5, 0.75])])
def test_the_rate_rises_linearly_and_stays(warmup, rates):
    optimizer = Optimizer(leaves(), OptimConfig(warmup_steps=warmup))
    got = [step(optimizer, gradients(i), 2.0) for i in range(6)]
    assert got[:3] == pytest.approx([2.0 * r for r in rates])
    assert got[4:] == [2.0, 2.0]


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_is_named_and_changes_nothing(poison):
    optimizer = Optimizer(leaves(), OptimConfig())
    step(optimizer, gradients(0), 1e-2)
    kept = {n: t.clone() for n, t in {**optimizer.masters, **optimizer.moments()}.items()}
    bad = gradients(1)
    bad["gain"][3] = poison
    push(optimizer, bad)
    with pytest.raises(NumericsError, match=r"gradient \(gain\): it must be finite - got"):
        optimizer.require_finite()
    now = {**optimizer.masters, **optimizer.moments()}
    assert all(torch.equal(kept[n], now[n]) for n in kept)
    assert optimizer.steps == 1


def test_large_gradients_do_not_overflow_the_norm():
    optimizer = Optimizer({"w": torch.ones(4)}, OptimConfig())
    push(optimizer, {"w": torch.full((4,), 1e30)})
    assert optimizer.require_finite() == pytest.approx(2e30)


def test_another_objective_starts_the_moments_and_the_warm_up_anew():
    optimizer = Optimizer(leaves(), OptimConfig(warmup_steps=2))
    optimizer.begin("supervised")
    for i in range(3):
        step(optimizer, gradients(i), 1e-2)
    assert optimizer.steps == 3
    assert optimizer.moments()
    optimizer.begin("supervised")
    assert optimizer.steps == 3
    optimizer.begin("rl")
    assert (optimizer.steps, optimizer.moments(), optimizer.objective) == (0, {}, "rl")
    assert optimizer.learning_rate(1.0) == 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_restored_state_goes_on_bit_for_bit(dtype):
    optimizer = Optimizer(leaves(dtype), OptimConfig(warmup_steps=8))
    for i in range(3):
        step(optimizer, gradients(i), 1e-2)
    saved = [{n: t.clone() for n, t in part.items()} for part in (optimizer.masters, optimizer.moments())]
    other = Optimizer(leaves(dtype, seed=9), OptimConfig(warmup_steps=8))
    step(other, gradients(5), 1e-2)
    push(other, gradients(6))
    other.restore(*saved, objective="rl", steps=3)
    for i in range(3, 6):
        assert step(optimizer, gradients(i), 1e-2) == step(other, gradients(i), 1e-2)
    for mine, theirs in (
        (optimizer.masters, other.masters),
        (optimizer.leaves, other.leaves),
        (optimizer.moments(), other.moments()),
    ):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[n], theirs[n]) for n in mine)


def test_restoring_before_the_first_step_has_no_moments():
    optimizer = Optimizer(leaves(), OptimConfig())
    step(optimizer, gradients(0), 1e-2)
    optimizer.restore(leaves(seed=4), {}, "rl", 0)
    assert optimizer.moments() == {}
    assert torch.equal(optimizer.leaves["matrix"], leaves(seed=4)["matrix"])
