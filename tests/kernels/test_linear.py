"""However rows are cut, a row keeps its bits and the gradient is that of the product."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lockstep.errors import NumericsError
from lockstep.kernels import linear as module
from lockstep.kernels.linear import BLOCKS, MOST_ROWS, Way, linear, way_of

CPU = torch.device("cpu")


def _randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("block", [0, *BLOCKS])
@pytest.mark.parametrize("rows", [1, 15, 16, 64, 65, MOST_ROWS + 1])
def test_blocks_are_products_of_one_size(block: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "way_of", lambda *_: Way(block))
    sizes = []
    real = F.linear
    monkeypatch.setattr(module.F, "linear", lambda x, *rest: sizes.append(x.shape[0]) or real(x, *rest))
    x, weight, bias = _randn(rows, 48), _randn(20, 48, seed=1), _randn(20, seed=2)
    out = linear(x, weight, bias)
    assert torch.allclose(out, x @ weight.T + bias, atol=1e-4)
    assert set(sizes) == {block} if block else all(size % 8 == 0 and size <= MOST_ROWS for size in sizes)


@pytest.mark.parametrize("block", [0, *BLOCKS])
def test_the_gradient_does_not_depend_on_the_cut(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "way_of", lambda *_: Way(block))
    inputs = [t.requires_grad_() for t in (_randn(70, 48), _randn(20, 48, seed=1), _randn(20, seed=2))]
    slope = _randn(70, 20, seed=3)
    linear(*inputs).backward(slope)
    x, weight, _ = (t.detach().double() for t in inputs)
    for got, expected in zip(
        inputs, (slope.double() @ weight, slope.T.double() @ x, slope.double().sum(0)), strict=True
    ):
        assert got.grad is not None
        assert torch.allclose(got.grad.double(), expected, atol=1e-4)


def test_a_machine_that_rounds_small_products_otherwise_gets_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    real = F.linear
    monkeypatch.setattr(module.F, "linear", lambda x, w, *rest: real(x, w, *rest) * (1 + (x.shape[0] < 40)))
    way_of.cache_clear()
    try:
        assert way_of(24, 56, torch.bfloat16, CPU) == Way(64)
    finally:
        way_of.cache_clear()


def test_fp32_on_a_cpu_takes_onednn_where_it_is_invariant() -> None:
    """MKL splits long rows among threads when the other sides are small."""
    way = way_of(50, 1152, torch.float32, CPU)
    x, weight = _randn(48, 1152), _randn(50, 1152, seed=1)
    assert way.onednn == torch.backends.mkldnn.is_available()
    assert torch.allclose(linear(x, weight), x @ weight.T, atol=1e-3)


def test_a_machine_whose_rows_depend_on_their_place_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = F.linear
    monkeypatch.setattr(module.F, "linear", lambda x, w, *rest: real(x, w, *rest) * (1 + torch.arange(len(x))[:, None]))
    way_of.cache_clear()
    try:
        with pytest.raises(NumericsError, match=r"linear \(24 x 56"):
            way_of(24, 56, torch.bfloat16, CPU)
    finally:
        way_of.cache_clear()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(960, 576), (576, 1536), (64, 256)])
def test_rows_keep_their_bits_at_sizes_that_were_not_measured(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight, x = _randn(*shape).to(dtype), _randn(700, shape[1], seed=1).to(dtype)
    whole = linear(x, weight)
    for start, count in ((0, 1), (3, 30), (100, 33), (7, 63), (64, 65), (1, 300), (99, 600)):
        assert torch.equal(linear(x[start : start + count], weight), whole[start : start + count]), (start, count)
