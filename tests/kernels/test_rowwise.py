"""Norm, RoPE, activation and linear: gradients against float64, bits against neighbours."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lockstep.kernels.activation import silu_mul
from lockstep.kernels.embedding import embed
from lockstep.kernels.linear import linear
from lockstep.kernels.norm import rms_norm
from lockstep.kernels.rope import inverse_frequencies, rotate, rotation


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _norm64(x: Tensor, gain: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gain


def _silu64(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


def _rotate64(x: Tensor) -> Tensor:
    """Each pair (i, i + D/2) is a complex number turned by position * theta^(-2i/D)."""
    half = x.shape[-1] // 2
    positions = torch.arange(x.shape[0], dtype=torch.float64) * 3
    angle = positions[:, None] * 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)[:, None, :]
    return torch.cat((turned.real, turned.imag), -1)


def _rotate(x: Tensor) -> Tensor:
    positions = torch.arange(x.shape[0]) * 3
    return rotate(x, *rotation(inverse_frequencies(x.shape[-1], 10000.0), positions))


CASES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "norm": (lambda x, g: rms_norm(x, g, 1e-5), _norm64, (_randn(5, 48), _randn(48, seed=1))),
    "norm per head": (lambda x, g: rms_norm(x, g, 1e-5), _norm64, (_randn(5, 3, 16), _randn(16, seed=1))),
    "silu": (silu_mul, _silu64, (_randn(5, 38),)),
    "rope": (_rotate, _rotate64, (_randn(9, 3, 16),)),
    "linear": (linear, lambda x, w, b: x @ w.T + b, (_randn(5, 48), _randn(20, 48, seed=1), _randn(20, seed=2))),
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_match_float64(name: str) -> None:
    mine, oracle, inputs = CASES[name]
    singles = [x.clone().requires_grad_() for x in inputs]
    doubles = [x.double().requires_grad_() for x in inputs]
    out, expected = mine(*singles), oracle(*doubles)
    assert torch.allclose(out.double(), expected, atol=2e-6), name
    upstream = _randn(*out.shape, seed=7)
    got = torch.autograd.grad(out, singles, upstream)
    for a, b in zip(got, torch.autograd.grad(expected, doubles, upstream.double()), strict=True):
        assert torch.allclose(a.double(), b, atol=1e-5), name


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 70),
    offset=st.integers(0, 30),
    width=st.sampled_from([24, 37, 64, 576]),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
    threads=st.sampled_from([1, 2]),
)
def test_rows_do_not_depend_on_their_neighbours(
    rows: int, offset: int, width: int, dtype: torch.dtype, threads: int
) -> None:
    x = _randn(100, 2 * width, seed=width).to(dtype)
    weight = _randn(50, 2 * width, seed=1).to(dtype)
    gain = _randn(2 * width, seed=2).to(dtype)
    kernels = (lambda r: linear(r, weight), lambda r: rms_norm(r, gain, 1e-6), silu_mul)
    before = torch.get_num_threads()
    try:
        for kernel in kernels:
            whole = kernel(x)
            torch.set_num_threads(threads)
            assert torch.equal(kernel(x[offset : offset + rows].contiguous()), whole[offset : offset + rows])
            torch.set_num_threads(before)
    finally:
        torch.set_num_threads(before)


def test_repeated_tokens_sum_their_gradients_in_fp32() -> None:
    table = _randn(4, 8).bfloat16().requires_grad_()
    ids = torch.tensor([2] * 300 + [0])
    rows = embed(table, ids)
    assert torch.equal(rows, table[ids])
    upstream = torch.full_like(rows, 1 / 64)
    (got,) = torch.autograd.grad(rows, table, upstream)
    assert got[2].tolist() == [300 / 64] * 8  # summed in bf16 it stops growing at 4.0
    assert got[0].tolist() == [1 / 64] * 8
    assert not got[[1, 3]].any()


def test_results_keep_the_dtype_of_their_input() -> None:
    x = _randn(3, 16).bfloat16()
    assert silu_mul(x).dtype is rms_norm(x, x[0], 1e-5).dtype is linear(x, x).dtype is torch.bfloat16
