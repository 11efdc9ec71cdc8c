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
from lockstep.kernels.attention import KEY_BLOCK, write_kv
from lockstep.kernels.embedding import embed
from lockstep.kernels.linear import linear
from lockstep.kernels.native.library import operators
from lockstep.kernels.norm import add_rms_norm, rms_norm
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


native = pytest.mark.skipif(operators() is None, reason="the reference runs here")
DTYPES = [torch.bfloat16, torch.float32]


def _reference(kernel: Callable[[], Tensor]) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCKSTEP_KERNELS", "reference")
        return kernel()


@settings(max_examples=40)
@given(
    tokens=st.integers(1, 40),
    heads=st.integers(1, 9),
    width=st.sampled_from([2, 16, 20, 64, 80, 128]),
    dtype=st.sampled_from(DTYPES),
)
def test_heads_that_lie_apart_give_the_bits_of_dense_ones(
    tokens: int, heads: int, width: int, dtype: torch.dtype
) -> None:
    """q and k are views of one product; each head is a row."""
    joint = _randn(tokens, heads + 3, width, seed=heads).to(dtype)
    x, gain = joint[:, 1 : heads + 1], _randn(width, seed=2).to(dtype)
    kernels = {"norm": lambda x: rms_norm(x, gain, 1e-6), "rotate": _rotate, "silu": silu_mul}
    for name, kernel in kernels.items():
        out = kernel(x)
        assert out.is_contiguous(), name
        assert torch.equal(out, kernel(x.contiguous())), name
        assert torch.equal(out[-1:, -1:], kernel(joint[:, 1:])[-1:, heads - 1 : heads]), name


@native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [2, 20, 64, 576])
def test_kernels_round_like_their_references(width: int, dtype: torch.dtype) -> None:
    x, gain = _randn(33, 3, width, seed=1).to(dtype) * 3, _randn(width, seed=2).to(dtype)
    assert torch.equal(_rotate(x), _reference(lambda: _rotate(x))), "the same four products and two sums"
    for kernel in (lambda: rms_norm(x, gain, 1e-5), lambda: silu_mul(x)):
        mine, theirs = kernel(), _reference(kernel)
        assert torch.allclose(mine.float(), theirs.float(), rtol=2**-7 if dtype is torch.bfloat16 else 1e-6)
        same = (mine == theirs).float().mean()
        assert dtype is not torch.bfloat16 or same > 0.999, "a rounding to bf16 seldom tips over"


def test_silu_of_large_and_special_numbers() -> None:
    gate = torch.tensor([-1e30, -200.0, -90.0, 0.0, 90.0, 200.0, 1e30, float("nan")])
    out = silu_mul(torch.cat((gate, torch.ones(8)))[None])[0]
    assert torch.allclose(out[:7], torch.tensor([0.0, 0.0, 0.0, 0.0, 90.0, 200.0, 1e30]), atol=1e-7)
    assert out[7].isnan()


@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_go_into_their_slots_and_nowhere_else(dtype: torch.dtype) -> None:
    keys, values = (torch.full((5, 3, KEY_BLOCK, 20), 7.0, dtype=dtype) for _ in range(2))
    both = _randn(9, 8, 20).to(dtype)
    k, v = both[:, 2:5], both[:, 5:]
    slots = torch.randperm(5 * KEY_BLOCK, generator=torch.Generator().manual_seed(1))[:9]
    write_kv((keys, values), k, v, slots)
    others = torch.ones(5 * KEY_BLOCK, dtype=torch.bool)
    others[slots] = False
    for cache, rows in ((keys, k), (values, v)):
        flat = cache.transpose(1, 2).flatten(0, 1)
        assert torch.equal(flat[slots], rows)
        assert (flat[others] == 7.0).all()
    with pytest.raises(IndexError):
        write_kv((keys, values), k[:1], v[:1], torch.tensor([5 * KEY_BLOCK]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [4, 48, 577])
def test_a_sum_and_its_norm_in_one_step_are_those_of_two(width: int, dtype: torch.dtype) -> None:
    x, delta, gain = (_randn(33, width, seed=1), _randn(33, width, seed=2), _randn(width, seed=3))
    given = [tensor.to(dtype).requires_grad_() for tensor in (x, delta, gain)]
    slopes = [_randn(33, width, seed=seed).to(dtype) for seed in (4, 5)]
    x, delta, gain = given
    total, normed = add_rms_norm(x, delta, gain, 1e-5)
    apart = x + delta
    assert torch.equal(total, apart)
    assert torch.equal(normed, rms_norm(apart, gain, 1e-5))
    mine = torch.autograd.grad((total, normed), given, slopes)
    theirs = torch.autograd.grad((apart, rms_norm(apart, gain, 1e-5)), given, slopes)
    for a, b in zip(mine, theirs, strict=True):
        assert torch.allclose(
            a.float(),
            b.float(),
            rtol=2**-6 if dtype is torch.bfloat16 else 1e-5,
            atol=1e-2 if dtype is torch.bfloat16 else 1e-5,
        )
    moved = add_rms_norm(x[7:], delta[7:], gain, 1e-5)
    assert all(torch.equal(part, whole[7:]) for part, whole in zip(moved, (total, normed), strict=True))
