"""Attention over a paged KV cache, and over packed sequences for training: one forward, the same bits.

In: query rows, key/value blocks, and a plan of which row sees which blocks. Out: one row per query row.

Why the bits agree. Every query row walks its keys in blocks of `KEY_BLOCK`, ascending, with an online softmax in fp32.
Rows are worked on in tiles, but a row's arithmetic is its own: the two small products have fixed inner sizes, and their
row count is a multiple of 4, where the GEMM's bits do not depend on it (the start-up probe checks that). A block that a
row does not see adds exactly zero. So decode (one row), a prefill chunk and a packed training batch agree.

Letters: T packed rows, H query heads, K kv heads, G = H / K, D head dim, B = KEY_BLOCK, N blocks of the cache,
X tiles, R rows of a tile, J block columns, S sequences, L longest sequence.
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
class Packing:
    """Whole sequences laid end to end, for training."""

    lengths: tuple[int, ...]
    tiles: Tiles
    source_NB: Tensor  # packed row whose key fills a slot of block n; past the end of a sequence its last row (masked)
    source_SL: Tensor  # packed row at each position of each sequence, padded likewise
    place_T: Tensor  # where packed row t lies in the flattened [S, L]

    @classmethod
    def of(cls, lengths: Sequence[int], device: str | torch.device = "cpu") -> Packing:
        """Plan the attention of sequences of these lengths, packed in this order."""
        L = -(-max(lengths) // KEY_BLOCK) * KEY_BLOCK
        size = np.asarray(lengths)
        first = np.concatenate(([0], np.cumsum(size)[:-1]))
        position = np.minimum(np.arange(L)[None, :], size[:, None] - 1)
        source = first[:, None] + position
        real = np.arange(L)[None, :] < size[:, None]
        columns = L // KEY_BLOCK
        tables = [range(s * columns, (s + 1) * columns) for s in range(len(size))]
        return cls(
            tuple(int(n) for n in lengths),
            plan_tiles([0] * len(size), lengths, tables, PREFILL_TILE, device),
            torch.from_numpy(source.reshape(-1, KEY_BLOCK)).to(device),
            torch.from_numpy(source).to(device),
            torch.from_numpy(np.flatnonzero(real)).to(device),
        )


def packed_attention(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, packing: Packing, scale: float) -> Tensor:
    """Causal attention within each packed sequence -> [T, H, D]; differentiable; bits of `paged_attention`."""
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
        """Dense per sequence, weights rebuilt from the log-normaliser (Dao et al. 2022, arXiv:2205.14135)."""
        q_THD, k_TKD, v_TKD, out_THD, normaliser_TH = ctx.saved_tensors
        packing: Packing = ctx.packing
        K = k_TKD.shape[1]
        grad_THD = grads[0].float()
        delta_TH = (grad_THD * out_THD.float()).sum(-1)
        q, grad = (_by_head(x, packing, K) for x in (q_THD.float(), grad_THD))
        k, v = (_by_head(x.float(), packing, K) for x in (k_TKD, v_TKD))
        normaliser, delta = (_by_head(x[..., None], packing, K) for x in (normaliser_TH, delta_TH))
        S, L = packing.source_SL.shape
        G = q_THD.shape[1] // K
        position = torch.arange(L, device=q.device)
        hidden = (position[None, :] > position[:, None]).repeat_interleave(G, dim=0)  # rows are (position, group)
        size = torch.tensor(packing.lengths, device=q.device).repeat_interleave(K)
        unused = (position[None, :] >= size[:, None]).repeat_interleave(G, dim=1)  # padding rows carry no gradient
        weights = torch.bmm(q, k.transpose(1, 2)).mul_(ctx.scale).sub_(normaliser).exp_()
        weights.masked_fill_(hidden[None], 0.0).masked_fill_(unused[:, :, None], 0.0)
        grad_v = torch.bmm(weights.transpose(1, 2), grad)
        grad_scores = weights.mul_(torch.bmm(grad, v.transpose(1, 2)).sub_(delta)).mul_(ctx.scale)
        grad_q = torch.bmm(grad_scores, k)
        grad_k = torch.bmm(grad_scores.transpose(1, 2), q)
        back = (_by_token(g, packing, S, K) for g in (grad_q, grad_k, grad_v))
        return (*(g.to(q_THD.dtype) for g in back), None, None)


def _by_head(x_THD: Tensor, packing: Packing, K: int) -> Tensor:
    """[T, K*G, D] -> [S*K, L*G, D], rows ordered (position, group)."""
    S, L = packing.source_SL.shape
    D = x_THD.shape[-1]
    return x_THD[packing.source_SL].view(S, L, K, -1, D).transpose(1, 2).reshape(S * K, -1, D)


def _by_token(x: Tensor, packing: Packing, S: int, K: int) -> Tensor:
    """[S*K, L*G, D] -> [T, K*G, D]."""
    D = x.shape[-1]
    L = packing.source_SL.shape[1]
    return x.view(S, K, L, -1, D).transpose(1, 2).reshape(S * L, -1, D)[packing.place_T]
