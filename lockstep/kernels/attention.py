"""Attention over a paged KV cache, and over packed sequences for training: one forward, the same bits.

In: query rows, key/value blocks, and a plan of which row sees which blocks. Out: one row per query row.

Why the bits agree. Every query row walks its keys in blocks of `KEY_BLOCK`, ascending, with an online softmax in fp32,
and its arithmetic is its own: it does not depend on the rows it is worked on with, on threads, or on where pages lie.
So decode (one row), a prefill chunk and a packed training batch agree. On CPUs the C++ kernels run
(native/attention.cpp); elsewhere, and where they cannot be had, PyTorch's operators (attention_reference.py).

Letters: T packed rows, H query heads, K kv heads, D head dim, B = KEY_BLOCK, N blocks of the cache, S sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lockstep.kernels.attention_reference import (
    KEY_BLOCK,
    PREFILL_TILE,
    Block,
    Passed,
    Rectangles,
    Segment,
    slopes,
    walk,
)
from lockstep.kernels.native.library import operators_for

__all__ = [
    "KEY_BLOCK",
    "PREFILL_TILE",
    "Packing",
    "Segment",
    "Tiles",
    "packed_attention",
    "paged_attention",
    "plan_tiles",
    "slots",
    "write_kv",
]


@dataclass(frozen=True, eq=False)
class Tiles:
    """Which query rows see which key blocks. The rectangles of the reference are laid out when it runs."""

    spans_S4: np.ndarray  # int64: first position, rows, first packed row, offset of its blocks in `table`
    table: np.ndarray  # int64: block ids of one sequence after the other
    tile: int  # rows worked on together; 0: the kernel chooses. It moves no bit of the result
    device: str | torch.device

    @cached_property
    def native(self) -> tuple[Tensor, Tensor]:
        """Spans and table as the C++ kernels take them."""
        return torch.from_numpy(self.spans_S4), torch.from_numpy(self.table)

    @cached_property
    def rectangles(self) -> Rectangles:
        """As the reference takes them."""
        return Rectangles.of(self.spans_S4, self.table, self.tile, self.device)


def plan_tiles(
    starts: Sequence[int],
    counts: Sequence[int],
    tables: Sequence[Sequence[int]],
    query_tile: int = 0,
    device: str | torch.device = "cpu",
) -> Tiles:
    """Plan `counts[s]` consecutive rows of each sequence, at positions `starts[s]`.., over its blocks `tables[s]`.

    `query_tile` 0 lets the kernel choose how many rows it works on together. It moves no bit of the result.
    """
    assert query_tile % 4 == 0, "tiles are multiples of 4 rows"
    spans = np.zeros((len(counts), 4), np.int64)
    spans[:, 0], spans[:, 1] = starts, counts
    np.cumsum(spans[:-1, 1], out=spans[1:, 2])
    np.cumsum([len(table) for table in tables[:-1]], out=spans[1:, 3])
    return Tiles(spans, np.concatenate([np.asarray(table, np.int64) for table in tables]), query_tile, device)


def slots(starts: Sequence[int], counts: Sequence[int], tables: Sequence[Sequence[int]]) -> Tensor:
    """Flat cache slot int64 [T] (block * KEY_BLOCK + offset) into which each packed row's key and value go."""
    out = []
    for start, count, table in zip(starts, counts, tables, strict=True):
        positions = np.arange(start, start + count)
        out.append(np.asarray(table, np.int64)[positions // KEY_BLOCK] * KEY_BLOCK + positions % KEY_BLOCK)
    return torch.from_numpy(np.concatenate(out))


def write_kv(cache: tuple[Tensor, Tensor], k_TKD: Tensor, v_TKD: Tensor, slots_T: Tensor) -> None:
    """Store each row in its slot of keys and values [N, K, B, D], in place."""
    operators = operators_for(*cache, k_TKD, v_TKD)
    if operators is not None:
        operators.write_kv(*cache, k_TKD, v_TKD, slots_T)
        return
    for cache_NKBD, rows_TKD in zip(cache, (k_TKD, v_TKD), strict=True):
        cache_NKBD[slots_T // KEY_BLOCK, :, slots_T % KEY_BLOCK] = rows_TKD


def paged_attention(q_THD: Tensor, k_NKBD: Tensor, v_NKBD: Tensor, tiles: Tiles, scale: float) -> Tensor:
    """Causal attention of packed rows over cached blocks -> [T, H, D], dtype of `q`. Unwritten slots must be finite."""
    operators = operators_for(q_THD, k_NKBD, v_NKBD)
    if operators is None:
        return walk(q_THD, k_NKBD, v_NKBD, tiles.rectangles, scale)[0]
    return operators.attention(q_THD, k_NKBD, v_NKBD, *tiles.native, None, tiles.tile or PREFILL_TILE, scale)[0]


@dataclass(frozen=True, eq=False)
class Packing:
    """Segments laid end to end, for training."""

    tiles: Tiles
    source_NB: Tensor  # packed row whose key fills a slot of block n; past the end of a segment its last row (masked)
    segments: tuple[Segment, ...]

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The rectangles of the reference's backward pass."""
        return Block.all_of(self.segments, self.tiles.device)

    @classmethod
    def of(cls, lengths: Sequence[int], device: str | torch.device = "cpu") -> Packing:
        """Plan the attention of whole sequences of these lengths, packed in this order."""
        first = np.concatenate(([0], np.cumsum(lengths)))
        return cls.of_segments([Segment(first[s] + np.arange(n), n) for s, n in enumerate(lengths)], device)

    @classmethod
    def of_segments(cls, segments: Sequence[Segment], device: str | torch.device = "cpu") -> Packing:
        """Plan the attention of segments whose own rows are packed in this order."""
        starts, counts, tables, sources, blocks_used = [], [], [], [], 0
        for segment in segments:
            whole = -(-len(segment.keys) // KEY_BLOCK)
            tables.append(range(blocks_used, blocks_used + whole))
            blocks_used += whole
            padded = np.minimum(np.arange(whole * KEY_BLOCK), len(segment.keys) - 1)
            sources.append(segment.keys[padded].reshape(whole, KEY_BLOCK))
            starts.append(len(segment.keys) - segment.count)
            counts.append(segment.count)
        tiles = plan_tiles(starts, counts, tables, PREFILL_TILE, device)
        return cls(tiles, torch.from_numpy(np.concatenate(sources)).to(device), tuple(segments))


def packed_attention(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, packing: Packing, scale: float) -> Tensor:
    """Causal attention of each segment over its keys -> [T, H, D]; differentiable; bits of `paged_attention`."""
    return _PackedAttention.apply(q_THD, k_TKD, v_TKD, packing, scale)


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        q_THD, k_TKD, v_TKD, packing, scale = inputs
        tiles, source_NB = packing.tiles, packing.source_NB
        operators = operators_for(q_THD, k_TKD, v_TKD)
        if operators is None:
            k_NKBD, v_NKBD = (x[source_NB].transpose(1, 2) for x in (k_TKD, v_TKD))
            out_THD, normaliser_TH = walk(q_THD, k_NKBD, v_NKBD, tiles.rectangles, scale)
        else:
            out_THD, normaliser_TH = operators.attention(
                q_THD, k_TKD, v_TKD, *tiles.native, source_NB, tiles.tile, scale
            )
        ctx.save_for_backward(q_THD, k_TKD, v_TKD, out_THD, normaliser_TH)
        ctx.packing, ctx.scale = packing, scale
        return out_THD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved, packing = ctx.saved_tensors, ctx.packing
        operators = operators_for(grads[0], *saved[:3])
        if operators is None:
            found = slopes(grads[0], Passed(*saved), packing.blocks, ctx.scale)
            return (*(g.to(saved[0].dtype) for g in found), None, None)
        tiles = packing.tiles.native
        return (*operators.attention_backward(grads[0], saved, *tiles, packing.source_NB, ctx.scale), None, None)
