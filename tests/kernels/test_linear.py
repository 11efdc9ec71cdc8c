"""However rows are cut, a row keeps its bits and the gradient is that of the product."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from lockstep.errors import NumericsError
from lockstep.kernels import linear as module
from lockstep.kernels.linear import BLOCKS, MOST_ROWS, Way, linear, pack, way_of
from lockstep.kernels.threads import thread_counts, using_threads

CPU = torch.device("cpu")


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine without our own product, about which nothing is known yet."""
    monkeypatch.setenv("LOCKSTEP_KERNELS", "reference")
    module._measured.cache_clear()
    yield
    module._measured.cache_clear()


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


def test_a_machine_that_rounds_small_products_otherwise_gets_blocks(
    unmeasured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = F.linear
    monkeypatch.setattr(module.F, "linear", lambda x, w, *rest: real(x, w, *rest) * (1 + (x.shape[0] < 40)))
    assert way_of(24, 56, torch.bfloat16, CPU) == Way(64)


def test_fp32_on_a_cpu_takes_onednn_where_it_is_invariant() -> None:
    """MKL splits long rows among threads when the other sides are small."""
    way = way_of(50, 1152, torch.float32, CPU)
    x, weight = _randn(48, 1152), _randn(50, 1152, seed=1)
    assert way.onednn == torch.backends.mkldnn.is_available()
    assert torch.allclose(linear(x, weight), x @ weight.T, atol=1e-3)


def test_a_machine_whose_rows_depend_on_their_place_is_refused(
    unmeasured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = F.linear
    monkeypatch.setattr(module.F, "linear", lambda x, w, *rest: real(x, w, *rest) * (1 + torch.arange(len(x))[:, None]))
    with pytest.raises(NumericsError, match=r"linear \(24 x 56"):
        way_of(24, 56, torch.bfloat16, CPU)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(960, 576), (576, 1536), (64, 256)])
def test_rows_keep_their_bits_at_sizes_that_were_not_measured(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight, x = _randn(*shape).to(dtype), _randn(700, shape[1], seed=1).to(dtype)
    whole = linear(x, weight)
    for start, count in ((0, 1), (3, 30), (100, 33), (7, 63), (64, 65), (1, 300), (99, 600)):
        assert torch.equal(linear(x[start : start + count], weight), whole[start : start + count]), (start, count)


SHAPES = [(64, 64), (960, 576), (130, 50), (1, 2), (63, 1536), (500, 34)]


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_packing_moves_no_bit_and_rows_stay_apart(shape: tuple[int, int], dtype: torch.dtype, wide: bool) -> None:
    weight, bias = _randn(*shape).to(dtype), _randn(shape[0], seed=1).to(dtype)
    x = _randn(1100, shape[1], seed=2).to(dtype)
    packed = pack(weight, wide)
    whole = linear(x, packed, bias)
    assert whole.dtype is (torch.float32 if wide else dtype)
    if not wide:
        assert torch.equal(whole, linear(x, weight, bias))
    for threads in thread_counts():
        with using_threads(threads):
            for start, count in ((0, 1), (3, 30), (100, 33), (7, 63), (64, 512), (1, 513), (99, 1000)):
                assert torch.equal(linear(x[start : start + count], packed, bias), whole[start : start + count])
    truth = x.double() @ weight.double().T + bias.double()
    rounding = 2**-8 if whole.dtype is torch.bfloat16 else 1e-5
    assert torch.allclose(whole.double(), truth, rtol=rounding, atol=1e-5 * shape[1] ** 0.5)


def test_rows_with_a_stride_and_no_rows() -> None:
    weight, x = _randn(70, 40).bfloat16(), _randn(9, 80, seed=1).bfloat16()
    half = x[:, :40]
    for packed in (weight, pack(weight)):
        assert torch.equal(linear(half, packed), linear(half.contiguous(), packed))
        assert linear(half[:0], packed).shape == (0, 70)


def test_gradients_through_a_packed_weight_reach_the_weight() -> None:
    x, weight, bias = (t.bfloat16().requires_grad_() for t in (_randn(70, 48), _randn(20, 48, seed=1), _randn(20)))
    slope = _randn(70, 20, seed=3).bfloat16()
    plain = torch.autograd.grad(linear(x, weight, bias), (x, weight, bias), slope)
    packed = torch.autograd.grad(linear(x, pack(weight), bias), (x, weight, bias), slope)
    assert all(torch.equal(a, b) for a, b in zip(plain, packed, strict=True))


@pytest.mark.parametrize("wide", [False, True])
def test_a_weight_changed_after_packing_is_refused(wide: bool) -> None:
    """WGT10: otherwise the update would have no effect at all."""
    weight = _randn(20, 48).bfloat16()
    packed = pack(weight, wide)
    before = linear(_randn(3, 48).bfloat16(), packed)
    weight.mul_(2.0)
    with pytest.raises(NumericsError, match="changed in place"):
        linear(_randn(3, 48).bfloat16(), packed)
    assert not torch.equal(linear(_randn(3, 48).bfloat16(), pack(weight, wide)), before)
    with torch.inference_mode():
        linear(_randn(3, 48).bfloat16(), pack(weight.clone(), wide))


def test_our_own_product_is_for_bf16_and_first_where_there_are_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    if not module._has_own(64, torch.bfloat16, CPU):
        pytest.skip("needs AVX-512 BF16")
    assert way_of(64, 64, torch.bfloat16, CPU, wide=True).native
    assert not way_of(64, 63, torch.bfloat16, CPU).native
    assert not way_of(64, 64, torch.float32, CPU).native
    assert not way_of(64, 64, torch.float32, CPU, wide=True).native
    for tiles in (True, False):
        monkeypatch.setattr(module.torch.cpu, "_is_amx_tile_supported", lambda tiles=tiles: tiles)
        first = module._candidates(torch.bfloat16, CPU, False, True)
        assert first[0] == (Way(native=True) if tiles else Way())
        assert (Way() in first) == (not tiles), "with tiles the library is never given all rows"


def test_no_other_size_is_measured_where_one_is_found(unmeasured: None) -> None:
    assert way_of(24, 56, torch.bfloat16, CPU) is way_of(24, 56, torch.bfloat16, CPU)
    assert not way_of(24, 56, torch.bfloat16, CPU, wide=True).native
