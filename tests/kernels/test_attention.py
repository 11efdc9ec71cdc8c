"""Attention: right against a dense oracle, and the same bits over every path."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lockstep.kernels import attention as module
from lockstep.kernels.attention import (
    KEY_BLOCK,
    Packing,
    Segment,
    packed_attention,
    paged_attention,
    plan_tiles,
    slots,
    write_kv,
)
from lockstep.kernels.attention_reference import walk
from lockstep.kernels.native.library import operators
from lockstep.kernels.threads import using_threads

HEADS = [(3, 1, 16), (9, 3, 64), (4, 4, 8), (14, 2, 32), (8, 1, 128), (4, 2, 20), (2, 2, 80)]
DTYPES = [torch.bfloat16, torch.float32]

native = pytest.mark.skipif(operators() is None, reason="the reference runs here")


def _random(total: int, heads: tuple[int, int, int], dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    H, K, D = heads
    shapes = ((total, H, D), (total, K, D), (total, K, D))
    q, k, v = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return q, k, v


def _oracle(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], scale: float) -> Tensor:
    """Dense causal attention, sequence by sequence, in float64."""
    rows, at = [], 0
    group = q.shape[1] // k.shape[1]
    for n in lengths:
        qs = q[at : at + n].double().transpose(0, 1)
        ks, vs = (x[at : at + n].double().repeat_interleave(group, dim=1).transpose(0, 1) for x in (k, v))
        scores = (qs @ ks.transpose(1, 2) * scale).masked_fill(torch.ones(n, n).triu(1).bool(), -float("inf"))
        rows.append((scores.softmax(-1) @ vs).transpose(0, 1))
        at += n
    return torch.cat(rows)


@pytest.mark.parametrize("heads", HEADS)
def test_packed_forward_and_backward_match_a_dense_oracle(heads: tuple[int, int, int]) -> None:
    lengths = [1, 7, 16, 17, 40]
    q, k, v = (x.requires_grad_() for x in _random(sum(lengths), heads, torch.float32, 1))
    scale = heads[2] ** -0.5
    out = packed_attention(q, k, v, Packing.of(lengths), scale)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    got = torch.autograd.grad(out, (q, k, v), upstream)
    doubles = [x.detach().double().requires_grad_() for x in (q, k, v)]
    expected = _oracle(*doubles, lengths, scale)
    assert torch.allclose(out.double(), expected, atol=2e-6)
    for mine, theirs in zip(got, torch.autograd.grad(expected, doubles, upstream.double()), strict=True):
        assert torch.allclose(mine.double(), theirs, atol=5e-6)


def _paged(qkv: tuple[Tensor, Tensor, Tensor], lengths: list[int], cuts: list[int], tile: int, seed: int) -> Tensor:
    """The same sequences through a shuffled cache with garbage in unwritten slots, cut into steps of `cuts` tokens."""
    q, k, v = qkv
    generator = torch.Generator().manual_seed(seed)
    needed = [-(-n // KEY_BLOCK) for n in lengths]
    order = torch.randperm(sum(needed) + 3, generator=generator).tolist()
    tables = [[order.pop() for _ in range(n)] for n in needed]
    shape = (sum(needed) + 3, k.shape[1], KEY_BLOCK, k.shape[2])
    caches = (
        torch.randn(shape, generator=generator).to(k.dtype) * 50,
        torch.randn(shape, generator=generator).to(k.dtype) * 50,
    )
    firsts = [sum(lengths[:s]) for s in range(len(lengths))]
    out = torch.empty_like(q)
    done = [0] * len(lengths)
    turn = 0
    while any(d < n for d, n in zip(done, lengths, strict=True)):
        counts = [min(cuts[(turn + s) % len(cuts)], n - d) for s, (d, n) in enumerate(zip(done, lengths, strict=True))]
        live = [s for s, c in enumerate(counts) if c > 0]
        if live:
            starts, sizes, used = [done[s] for s in live], [counts[s] for s in live], [tables[s] for s in live]
            rows = torch.cat([torch.arange(firsts[s] + done[s], firsts[s] + done[s] + counts[s]) for s in live])
            where = slots(starts, sizes, used)
            write_kv(caches, k[rows], v[rows], where)
            out[rows] = paged_attention(q[rows], *caches, plan_tiles(starts, sizes, used, tile), 0.3)
        done = [d + max(c, 0) for d, c in zip(done, counts, strict=True)]
        turn += 1
    return out


@settings(max_examples=40, deadline=None)
@given(
    heads=st.sampled_from(HEADS),
    dtype=st.sampled_from(DTYPES),
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=6),
    cuts=st.lists(st.integers(0, 20), min_size=1, max_size=4).filter(any),
    tile=st.sampled_from([0, 4, 8, 16, 32]),
    seed=st.integers(0, 1000),
)
def test_chunks_decode_pages_and_packing_give_the_same_bits(
    heads: tuple[int, int, int], dtype: torch.dtype, lengths: list[int], cuts: list[int], tile: int, seed: int
) -> None:
    qkv = _random(sum(lengths), heads, dtype, seed)
    packed = packed_attention(*qkv, Packing.of(lengths), 0.3)
    assert torch.equal(packed, _paged(qkv, lengths, cuts, tile, seed))
    alone = packed_attention(*(x[-lengths[-1] :] for x in qkv), Packing.of(lengths[-1:]), 0.3)
    assert torch.equal(packed[-lengths[-1] :], alone)


def test_a_shared_prefix_gives_the_bits_and_the_gradients_of_its_copies() -> None:
    """Three continuations of one prefix, packed with the prefix once and with a copy each."""
    heads, scale, prefix, tails = (9, 3, 16), 0.25, 21, [5, 1, 18]
    q, k, v = (x.requires_grad_() for x in _random(prefix + sum(tails), heads, torch.float32, 5))
    own = torch.arange(prefix, prefix + sum(tails)).split(tails)
    shared = [Segment(np.arange(prefix), prefix)]
    shared += [Segment(np.concatenate((np.arange(prefix), rows.numpy())), len(rows)) for rows in own]
    out = packed_attention(q, k, v, Packing.of_segments(shared), scale)
    copies = torch.cat([torch.cat((torch.arange(prefix), rows)) for rows in own])
    apart = packed_attention(q[copies], k[copies], v[copies], Packing.of([prefix + n for n in tails]), scale)
    assert torch.equal(out[copies], apart)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    mine = torch.autograd.grad(out, (q, k, v), upstream)
    kept = torch.zeros(len(copies), 1, 1)  # the prefix's own rows count once, not once a copy
    first = torch.cat([torch.arange(len(copies)) >= prefix]) & (copies < prefix)
    kept[~first] = 1.0
    theirs = torch.autograd.grad(apart, (q, k, v), upstream[copies] * kept)
    for a, b in zip(mine, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_a_sequence_does_not_see_its_neighbour() -> None:
    q, k, v = _random(40, (4, 2, 8), torch.float32, 3)
    before = packed_attention(q, k, v, Packing.of([20, 20]), 0.3)
    k[:20], v[:20] = 7.0, -7.0
    after = packed_attention(q, k, v, Packing.of([20, 20]), 0.3)
    assert torch.equal(before[20:], after[20:])
    assert not torch.equal(before[:20], after[:20])


def _prefill(heads: tuple[int, int, int], dtype: torch.dtype, lengths: list[int]) -> tuple[tuple, dict]:
    """Arguments of a prefill of whole sequences over a cache that holds them, and their packed rows."""
    q, k, v = _random(sum(lengths), heads, dtype, 7)
    needed = [-(-n // KEY_BLOCK) for n in lengths]
    at = iter(torch.randperm(sum(needed), generator=torch.Generator().manual_seed(3)).tolist())
    tables = [[next(at) for _ in range(n)] for n in needed]
    zeros = [0] * len(lengths)
    empty = torch.zeros(sum(needed), heads[1], KEY_BLOCK, heads[2], dtype=dtype)
    caches = (empty, empty.clone())
    write_kv(caches, k, v, slots(zeros, lengths, tables))
    return (q, *caches, plan_tiles(zeros, lengths, tables), heads[2] ** -0.5), {"k": k, "v": v}


@native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", HEADS)
def test_the_kernel_is_as_near_the_truth_as_its_reference(heads: tuple[int, int, int], dtype: torch.dtype) -> None:
    lengths = [1, 16, 33, 70]
    arguments, rows = _prefill(heads, dtype, lengths)
    q, k, v, tiles, scale = arguments
    found = operators().attention(q, k, v, *tiles.native, None, 16, scale)
    expected = walk(q, k, v, tiles.rectangles, scale)
    truth = _oracle(q, rows["k"], rows["v"], lengths, scale)
    rounding = 2**-8 if dtype is torch.bfloat16 else 2e-6
    assert torch.allclose(found[0].double(), truth, atol=rounding / 4, rtol=rounding)
    assert torch.allclose(found[1], expected[1], atol=4e-6)
    mine, theirs = ((out[0].double() - truth).abs().max() for out in (found, expected))
    assert mine <= 1.5 * theirs + 1e-7


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_do_not_show(dtype: torch.dtype) -> None:
    arguments, _ = _prefill((9, 3, 64), dtype, [300, 5, 64, 200])
    found = []
    for threads in (1, 2, 3):
        with using_threads(threads):
            found.append(paged_attention(*arguments))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_number_that_is_not_one_is_not_hidden() -> None:
    (q, k, v, tiles, scale), _ = _prefill((2, 1, 16), torch.float32, [20])
    q[19, 1, 3] = float("nan")
    out = paged_attention(q, k, v, tiles, scale)
    assert out[19, 1].isnan().all()
    assert out[:19].isfinite().all()
    k[tiles.table[0], 0, 2, 5] = float("inf")
    assert not paged_attention(q[:10], k, v, plan_tiles([0], [10], [tiles.table]), scale).isfinite().all()


@pytest.mark.parametrize("size", [1e-30, 1.0, 30.0, 1e4])
def test_scores_of_any_size(size: float) -> None:
    """Weights from equal to one-hot, and rows of which all but one weight vanish."""
    lengths = [40]
    (q, k, v, tiles, scale), rows = _prefill((4, 2, 16), torch.float32, lengths)
    out = paged_attention(q * size, k, v, tiles, scale)
    assert torch.allclose(out.double(), _oracle(q.double() * size, rows["k"], rows["v"], lengths, scale), atol=2e-4)


@native
def test_a_wrong_index_is_an_error() -> None:
    (q, k, v, tiles, scale), _ = _prefill((2, 1, 16), torch.float32, [20])
    for spoiled in (
        module.Tiles(tiles.spans_S4, tiles.table + 2, 0, "cpu"),
        module.Tiles(tiles.spans_S4 + np.array([0, 1, 0, 0]), tiles.table, 0, "cpu"),
        module.Tiles(tiles.spans_S4 + np.array([16, 0, 0, 0]), tiles.table, 0, "cpu"),
    ):
        with pytest.raises(IndexError, match=r"table|plan"):
            paged_attention(q, k, v, spoiled, scale)


def _group(prompt: int, tails: list[int]) -> list[Segment]:
    """A prompt packed once and its completions."""
    own = torch.arange(prompt, prompt + sum(tails)).split(tails)
    return [Segment(np.arange(prompt), prompt)] + [
        Segment(np.concatenate((np.arange(prompt), rows.numpy())), len(rows)) for rows in own
    ]


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_do_not_show_threads(dtype: torch.dtype) -> None:
    tails = [30, 1, 17, 64]
    inputs = [x.requires_grad_() for x in _random(50 + sum(tails), (6, 2, 20), dtype, 4)]
    packing = Packing.of_segments(_group(50, tails))
    out = packed_attention(*inputs, packing, 0.25)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = []
    for threads in (1, 2, 3):
        with using_threads(threads):
            found.append(torch.autograd.grad(out, inputs, upstream, retain_graph=True))
    for one, *others in zip(*found, strict=True):
        assert all(torch.equal(one, other) for other in others)


@native
@settings(max_examples=25)
@given(
    heads=st.sampled_from(HEADS),
    dtype=st.sampled_from(DTYPES),
    prompt=st.integers(1, 40),
    tails=st.lists(st.integers(1, 40), max_size=5),
    seed=st.integers(0, 1000),
)
def test_gradients_are_those_of_the_reference(
    heads: tuple[int, int, int], dtype: torch.dtype, prompt: int, tails: list[int], seed: int
) -> None:
    inputs = [x.requires_grad_() for x in _random(prompt + sum(tails), heads, dtype, seed)]
    packing = Packing.of_segments(_group(prompt, tails))
    out = packed_attention(*inputs, packing, 0.25)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    mine = torch.autograd.grad(out, inputs, upstream)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCKSTEP_KERNELS", "reference")
        theirs = torch.autograd.grad(packed_attention(*inputs, packing, 0.25), inputs, upstream)
    rounding = 2**-7 if dtype is torch.bfloat16 else 5e-6
    for a, b in zip(mine, theirs, strict=True):
        assert torch.allclose(a.float(), b.float(), atol=rounding * max(1.0, b.abs().max().item()), rtol=rounding)


def test_a_packed_row_that_nobody_sees_has_no_gradient() -> None:
    """A key is summed over those that see it, and is zero where there are none."""
    q, k, v = (x.requires_grad_() for x in _random(6, (2, 1, 8), torch.float32, 4))
    packing = Packing.of_segments([Segment(np.arange(3), 3), Segment(np.array([4, 5, 3]), 1)])
    out = packed_attention(q[:4], k, v, packing, 0.25)
    grads = torch.autograd.grad(out[:3].sum(), (k, v))
    assert all(torch.equal(g[3:], torch.zeros(3, 1, 8)) for g in grads)
