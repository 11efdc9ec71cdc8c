"""Attention in PyTorch's operators: the oracle of the C++ kernels, and what runs where they do not.

In: the rows and the plan of kernels/attention.py. Out: rows with their log-normalisers; gradients.

Rows are worked on in rectangular tiles, but a row's arithmetic is its own: the two small products have fixed inner
sizes, and their row count is a multiple of 4, where the GEMM's bits do not depend on it (the start-up probe checks
that). A block that a row does not see adds exactly zero.

Letters: T packed rows, H query heads, K kv heads, G = H / K, D head dim, B = KEY_BLOCK, N blocks of the cache,
X tiles, R rows of a tile, J block columns, S segments, Q their rows, L their keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

KEY_BLOCK = 16
"""Keys in one step of the walk. The pages of a cache are multiples of it."""

DECODE_TILE = 4
PREFILL_TILE = 16


@dataclass(frozen=True, slots=True, eq=False)
class Rectangles:
    """Which query rows see which key blocks. Tiles are ordered by falling number of blocks."""

    rows_XR: Tensor  # packed row worked on (padding repeats a row of the same tile)
    lengths_XR: Tensor  # keys that the row sees, itself included
    tables_XJ: Tensor  # block ids
    place_T: Tensor  # where packed row t lies in the flattened tiles
    active_J: tuple[int, ...]  # tiles that reach block column j: the first active_J[j]

    @classmethod
    def of(cls, spans_S4: np.ndarray, table: np.ndarray, tile: int, device: str | torch.device) -> Rectangles:
        """Tile each span (start, count, first packed row, offset into `table`). `tile` 0 chooses; it moves no bit."""
        tile = tile or (DECODE_TILE if spans_S4[:, 1].max() == 1 else PREFILL_TILE)
        assert tile % 4 == 0, "tiles are multiples of 4 rows"
        starts, counts, firsts, offsets = spans_S4.T
        pieces = [
            (-(-min(start + count, start + at + tile) // KEY_BLOCK), s, at)
            for s, (start, count) in enumerate(zip(starts.tolist(), counts.tolist(), strict=True))
            for at in range(0, count, tile)
        ]
        pieces.sort(key=lambda piece: -piece[0])  # stable: ties keep the order of the sequences
        blocks, owners, ats = (np.array(column, np.int64) for column in zip(*pieces, strict=True))
        within = ats[:, None] + np.arange(tile)
        real = within < counts[owners][:, None]
        within = np.where(real, within, ats[:, None])
        rows = firsts[owners][:, None] + within
        lengths = starts[owners][:, None] + within + 1
        ids = np.zeros((len(pieces), blocks[0]), np.int64)
        for x, (count, s, _) in enumerate(pieces):
            ids[x, :count] = table[offsets[s] : offsets[s] + count]
        place = np.empty(counts.sum(), np.int64)
        place[rows[real]] = np.flatnonzero(real)
        active = tuple(int((blocks > j).sum()) for j in range(blocks[0]))
        rows_XR, lengths_XR, ids_XJ, place_T = (torch.from_numpy(a).to(device) for a in (rows, lengths, ids, place))
        return cls(rows_XR, lengths_XR, ids_XJ, place_T, active)


def walk(q_THD: Tensor, k_NKBD: Tensor, v_NKBD: Tensor, tiles: Rectangles, scale: float) -> tuple[Tensor, Tensor]:
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

    @classmethod
    def all_of(cls, segments: Sequence[Segment], device: str | torch.device) -> tuple[Block, ...]:
        """Group segments by length."""
        by_size: dict[int, list[Segment]] = {}
        for segment in segments:
            by_size.setdefault(-(-segment.count // PREFILL_TILE), []).append(segment)
        return tuple(cls._of(group, device) for group in by_size.values())

    @classmethod
    def _of(cls, segments: Sequence[Segment], device: str | torch.device) -> Block:
        counts = np.array([segment.count for segment in segments])
        lengths = np.array([len(segment.keys) for segment in segments])
        query, key = np.arange(counts.max()), np.arange(lengths.max())
        keys = np.stack([s.keys[np.minimum(key, len(s.keys) - 1)] for s in segments])
        queries = np.stack([s.keys[len(s.keys) - s.count :][np.minimum(query, s.count - 1)] for s in segments])
        real = query[None, :] < counts[:, None]
        seen = key[None, None, :] <= (lengths - counts)[:, None, None] + query[None, :, None]
        own = np.flatnonzero(real)
        hidden = ~(seen & real[:, :, None])
        arrays = (queries, keys, hidden, own, queries.ravel()[own])
        return cls(*(torch.from_numpy(array).to(device) for array in arrays))


@dataclass(frozen=True, slots=True, eq=False)
class Passed:
    """What the forward pass leaves for the backward."""

    q_THD: Tensor
    k_TKD: Tensor
    v_TKD: Tensor
    out_THD: Tensor
    normaliser_TH: Tensor


def slopes(grad_THD: Tensor, passed: Passed, blocks: Sequence[Block], scale: float) -> tuple[Tensor, ...]:
    """Gradients of q, k and v, fp32. Dense per segment, weights rebuilt from the log-normaliser (arXiv:2205.14135)."""
    q_THD, k_TKD, v_TKD = passed.q_THD, passed.k_TKD, passed.v_TKD
    K = k_TKD.shape[1]
    G = q_THD.shape[1] // K
    grad_THD = grad_THD.float()
    delta_TH = (grad_THD * passed.out_THD.float()).sum(-1)
    grad_q = torch.empty(q_THD.shape, dtype=torch.float32, device=q_THD.device)
    grad_k, grad_v = (torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (k_TKD, v_TKD))
    for block in blocks:
        q, grad = (_by_head(x, block.queries_SQ, K).float() for x in (q_THD, grad_THD))
        k, v = (_by_head(x, block.keys_SL, K).float() for x in (k_TKD, v_TKD))
        normaliser, delta = (_by_head(x[..., None], block.queries_SQ, K) for x in (passed.normaliser_TH, delta_TH))
        hidden = block.hidden_SQL.repeat_interleave(G, dim=1).repeat_interleave(K, dim=0)
        weights = torch.bmm(q, k.transpose(1, 2)).mul_(scale).sub_(normaliser).exp_().masked_fill_(hidden, 0.0)
        slope_v = torch.bmm(weights.transpose(1, 2), grad)
        slope = weights.mul_(torch.bmm(grad, v.transpose(1, 2)).sub_(delta)).mul_(scale)
        grad_q[block.rows] = _by_row(torch.bmm(slope, k), block.queries_SQ, K)[block.own]
        into = block.keys_SL.flatten()
        grad_k.index_add_(0, into, _by_row(torch.bmm(slope.transpose(1, 2), q), block.keys_SL, K))
        grad_v.index_add_(0, into, _by_row(slope_v, block.keys_SL, K))
    return grad_q, grad_k, grad_v


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
