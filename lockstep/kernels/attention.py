"""Attention over a paged KV cache, and over packed sequences for training: one forward, the same bits.

In: query rows, key/value blocks, and a plan of which row sees which blocks. Out: one row per query row.

Why the bits agree. Every query row walks its keys in blocks of `KEY_BLOCK`, ascending, with an online softmax in fp32.
Rows are worked on in tiles, but a row's arithmetic is its own: the two small products have fixed inner sizes, and their
row count is a multiple of 4, where the GEMM's bits do not depend on it (the start-up probe checks that). A block that a
row does not see adds exactly zero. So decode (one row), a prefill chunk and a packed training batch agree.

Letters: T packed rows, H query heads, K kv heads, G = H / K, D head dim, B = KEY_BLOCK, N blocks of the cache,
X tiles, R rows of a tile, J block columns, S segments, Q their rows, L their keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

KEY_BLOCK = 16
"""Keys in one step of the walk. The pages of a cache are multiples of it."""

DECODE_TILE = 4
PREFILL_TILE = 16


@dataclass(frozen=True, slots=True, eq=False)
class Tiles:
    """Which query rows see which key blocks. Tiles are ordered by falling number of blocks."""

    rows_XR: Tensor  # packed row worked on (padding repeats a row of the same tile)
    lengths_XR: Tensor  # keys that the row sees, itself included
    tables_XJ: Tensor  # block ids
    place_T: Tensor  # where packed row t lies in the flattened tiles
    active_J: tuple[int, ...]  # tiles that reach block column j: the first active_J[j]


def plan_tiles(
    starts: Sequence[int],
    counts: Sequence[int],
    tables: Sequence[Sequence[int]],
    query_tile: int = 0,
    device: str | torch.device = "cpu",
) -> Tiles:
    """Tile `counts[s]` consecutive rows of each sequence, at positions `starts[s]`.., over its blocks `tables[s]`.

    `query_tile` 0 chooses: small tiles if every sequence has one row. It moves no bit of the result.
    """
    tile = query_tile or (DECODE_TILE if max(counts) == 1 else PREFILL_TILE)
    assert tile % 4 == 0, "tiles are multiples of 4 rows"
    first_row = np.concatenate(([0], np.cumsum(counts)))
    pieces = [
        (-(-min(start + count, start + at + tile) // KEY_BLOCK), s, at)
        for s, (start, count) in enumerate(zip(starts, counts, strict=True))
        for at in range(0, count, tile)
    ]
    pieces.sort(key=lambda piece: -piece[0])  # stable: ties keep the order of the sequences
    blocks, owners, offsets = (np.array(column, np.int64) for column in zip(*pieces, strict=True))
    within = offsets[:, None] + np.arange(tile)
    real = within < np.asarray(counts)[owners][:, None]
    within = np.where(real, within, offsets[:, None])
    rows = first_row[owners][:, None] + within
    lengths = np.asarray(starts)[owners][:, None] + within + 1
    table = np.zeros((len(pieces), blocks[0]), np.int64)
    for x, (count, s, _) in enumerate(pieces):
        table[x, :count] = tables[s][:count]
    place = np.empty(first_row[-1], np.int64)
    place[rows[real]] = np.flatnonzero(real)
    active = tuple(int((blocks > j).sum()) for j in range(blocks[0]))

    def move(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    return Tiles(move(rows), move(lengths), move(table), move(place), active)


def slots(starts: Sequence[int], counts: Sequence[int], tables: Sequence[Sequence[int]]) -> Tensor:
    """Flat cache slot int64 [T] (block * KEY_BLOCK + offset) into which each packed row's key and value go."""
    out = []
    for start, count, table in zip(starts, counts, tables, strict=True):
        positions = np.arange(start, start + count)
        out.append(np.asarray(table, np.int64)[positions // KEY_BLOCK] * KEY_BLOCK + positions % KEY_BLOCK)
    return torch.from_numpy(np.concatenate(out))


def write_kv(cache_NKBD: Tensor, rows_TKD: Tensor, slots_T: Tensor) -> None:
    """Store each row in its slot, in place."""
    cache_NKBD[slots_T // KEY_BLOCK, :, slots_T % KEY_BLOCK] = rows_TKD


def paged_attention(q_THD: Tensor, k_NKBD: Tensor, v_NKBD: Tensor, tiles: Tiles, scale: float) -> Tensor:
    """Causal attention of packed rows over cached blocks -> [T, H, D], dtype of `q`. Unwritten slots must be finite."""
    return _walk(q_THD, k_NKBD, v_NKBD, tiles, scale)[0]


def _walk(q_THD: Tensor, k_NKBD: Tensor, v_NKBD: Tensor, tiles: Tiles, scale: float) -> tuple[Tensor, Tensor]:
    """Output [T, H, D] and log-normaliser fp32 [T, H]."""
    _, H, D = q_THD.shape
    K = k_NKBD.shape[1]
    G = H // K
    X, R = tiles.rows_XR.shape
    q = q_THD[tiles.rows_XR].float().mul_(scale).view(X, R, K, G, D).transpose(1, 2).reshape(X, K, R * G, D)
    visible = tiles.lengths_XR.repeat_interleave(G, dim=1)[:, None, :, None]
    peak = q.new_full((X, K, R * G, 1), -float("inf"))
    total, out = torch.zeros_like(peak), torch.zeros_like(q)
    key = torch.arange(KEY_BLOCK, device=q.device)
    for j, n in enumerate(tiles.active_J):
        blocks = tiles.tables_XJ[:n, j]
        scores = torch.matmul(q[:n], k_NKBD[blocks].float().transpose(2, 3))
        scores.masked_fill_(key + j * KEY_BLOCK >= visible[:n], -float("inf"))
        higher = torch.maximum(peak[:n], scores.amax(-1, keepdim=True))
        decay = torch.exp(peak[:n] - higher)
        weights = scores.sub_(higher).exp_()
        peak[:n] = higher
        total[:n] = total[:n] * decay + weights.sum(-1, keepdim=True)
        out[:n] = out[:n] * decay + torch.matmul(weights, v_NKBD[blocks].float())
    rows = (out / total).view(X, K, R, G, D).transpose(1, 2).reshape(X * R, H, D)[tiles.place_T]
    normaliser = (peak + total.log()).view(X, K, R, G).transpose(1, 2).reshape(X * R, H)[tiles.place_T]
    return rows.to(q_THD.dtype), normaliser


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Consecutive packed rows and what they see: `keys` int64 are packed rows by position, the last `count` its own.

    Segments may share keys: the completions of one prompt all see the prompt's rows, which are packed once.
    """

    keys: np.ndarray
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Segments of about equal length, padded to a rectangle for the backward pass. Q rows, L keys of a segment."""

    queries_SQ: Tensor  # packed row (padding repeats a row; `hidden_SQL` masks it)
    keys_SL: Tensor  # packed row of each key, padded likewise
    hidden_SQL: Tensor  # key j is not seen by query i, or one of them is padding
    own: Tensor  # flat indices [S * Q] of the queries that are not padding
    rows: Tensor  # their packed rows


@dataclass(frozen=True, slots=True, eq=False)
class Packing:
    """Segments laid end to end, for training."""

    tiles: Tiles
    source_NB: Tensor  # packed row whose key fills a slot of block n; past the end of a segment its last row (masked)
    blocks: tuple[Block, ...]

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
        by_size: dict[int, list[Segment]] = {}
        for segment in segments:
            by_size.setdefault(-(-segment.count // PREFILL_TILE), []).append(segment)
        blocks = tuple(_block(group, device) for group in by_size.values())
        return cls(tiles, torch.from_numpy(np.concatenate(sources)).to(device), blocks)


def _block(segments: Sequence[Segment], device: str | torch.device) -> Block:
    counts = np.array([segment.count for segment in segments])
    lengths = np.array([len(segment.keys) for segment in segments])
    query, key = np.arange(counts.max()), np.arange(lengths.max())
    keys = np.stack([s.keys[np.minimum(key, len(s.keys) - 1)] for s in segments])
    queries = np.stack([s.keys[len(s.keys) - s.count :][np.minimum(query, s.count - 1)] for s in segments])
    real = query[None, :] < counts[:, None]
    seen = key[None, None, :] <= (lengths - counts)[:, None, None] + query[None, :, None]
    own = np.flatnonzero(real)

    def move(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    return Block(move(queries), move(keys), move(~(seen & real[:, :, None])), move(own), move(queries.ravel()[own]))


def packed_attention(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, packing: Packing, scale: float) -> Tensor:
    """Causal attention of each segment over its keys -> [T, H, D]; differentiable; bits of `paged_attention`."""
    return _PackedAttention.apply(q_THD, k_TKD, v_TKD, packing, scale)


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        q_THD, k_TKD, v_TKD, packing, scale = inputs
        k_NKBD = k_TKD[packing.source_NB].transpose(1, 2)
        v_NKBD = v_TKD[packing.source_NB].transpose(1, 2)
        out_THD, normaliser_TH = _walk(q_THD, k_NKBD, v_NKBD, packing.tiles, scale)
        ctx.save_for_backward(q_THD, k_TKD, v_TKD, out_THD, normaliser_TH)
        ctx.packing, ctx.scale = packing, scale
        return out_THD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Dense per segment, weights rebuilt from the log-normaliser (Dao et al. 2022, arXiv:2205.14135)."""
        q_THD, k_TKD, v_TKD, out_THD, normaliser_TH = ctx.saved_tensors
        packing: Packing = ctx.packing
        K = k_TKD.shape[1]
        grad_THD = grads[0].float()
        delta_TH = (grad_THD * out_THD.float()).sum(-1)
        grad_q = torch.empty(q_THD.shape, dtype=torch.float32, device=q_THD.device)
        grad_k, grad_v = (torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (k_TKD, v_TKD))
        for block in packing.blocks:
            G = q_THD.shape[1] // K
            q, grad = (_by_head(x, block.queries_SQ, K).float() for x in (q_THD, grad_THD))
            k, v = (_by_head(x, block.keys_SL, K).float() for x in (k_TKD, v_TKD))
            normaliser, delta = (_by_head(x[..., None], block.queries_SQ, K) for x in (normaliser_TH, delta_TH))
            hidden = block.hidden_SQL.repeat_interleave(G, dim=1).repeat_interleave(K, dim=0)
            weights = torch.bmm(q, k.transpose(1, 2)).mul_(ctx.scale).sub_(normaliser).exp_().masked_fill_(hidden, 0.0)
            slope_v = torch.bmm(weights.transpose(1, 2), grad)
            slope = weights.mul_(torch.bmm(grad, v.transpose(1, 2)).sub_(delta)).mul_(ctx.scale)
            grad_q[block.rows] = _by_row(torch.bmm(slope, k), block.queries_SQ, K)[block.own]
            into = block.keys_SL.flatten()
            grad_k.index_add_(0, into, _by_row(torch.bmm(slope.transpose(1, 2), q), block.keys_SL, K))
            grad_v.index_add_(0, into, _by_row(slope_v, block.keys_SL, K))
        return (*(g.to(q_THD.dtype) for g in (grad_q, grad_k, grad_v)), None, None)


def _by_head(x_THD: Tensor, rows_SQ: Tensor, K: int) -> Tensor:
    """[T, K*G, D] -> [S*K, Q*G, D], rows ordered (position, group)."""
    S, Q = rows_SQ.shape
    D = x_THD.shape[-1]
    return x_THD[rows_SQ].view(S, Q, K, -1, D).transpose(1, 2).reshape(S * K, -1, D)


def _by_row(x: Tensor, rows_SQ: Tensor, K: int) -> Tensor:
    """[S*K, Q*G, D] -> [S*Q, K*G, D]."""
    S, Q = rows_SQ.shape
    D = x.shape[-1]
    return x.view(S, K, Q, -1, D).transpose(1, 2).reshape(S * Q, -1, D)
