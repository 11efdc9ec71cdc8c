"""Hidden rows of samples whose layout, keys or rounding are not as stated: the model's kernels around the flipped part.

In: courses, parameters by private number, a hypothesis. Out: hidden rows that decide tokens.

All samples lie end to end. There is one forward over all rows for each set of weights, oldest first; in every layer the
keys of rows that belong to an older set are replaced by those that its own forward left there.

Letters: T packed rows, E hidden size, H query heads, K kv heads, D head dim.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lockstep.kernels.activation import silu_mul
from lockstep.kernels.attention import Packing, packed_attention
from lockstep.kernels.embedding import embed
from lockstep.kernels.linear import linear
from lockstep.kernels.norm import rms_norm
from lockstep.kernels.rope import rotate, rotation
from lockstep.models import decoder
from lockstep.models.architecture import Architecture
from lockstep.models.decoder import Parameters, attention_scale, frequencies
from lockstep.parity.hypothesis import Hypothesis, Rounding
from lockstep.parity.observation import Sample
from lockstep.pipeline.reference.course import Course
from lockstep.train.forward import Forward

Norm = Callable[[Tensor, Tensor, float], Tensor]
Keys = list[tuple[Tensor, Tensor]]
"""Keys and values [T, K, D] of every layer."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Packed rows: ids, positions, lengths of the sequences, the private number of each row's weights (-1: given)."""

    ids_T: Tensor
    positions_T: Tensor
    lengths: tuple[int, ...]
    number_T: Tensor
    first: tuple[int, ...]  # packed row that decides the first token of each sample


def decided_states(
    forward: Forward,
    samples: Sequence[Sample],
    courses: Sequence[Course],
    held: Mapping[int, Parameters],
    h: Hypothesis,
) -> list[list[tuple[int, Tensor, range]]]:
    """Parts of each sample: (private number, hidden rows, tokens), in the order of the tokens."""
    rows = _rows(samples, courses, h)
    given = _given(forward.arch, samples, rows, held, h)
    hidden_TE = _run(forward.arch, rows, held, h.rounding, given)
    found = []
    for sample, first in zip(samples, rows.first, strict=True):
        numbers = rows.number_T[first : first + len(sample.token_ids)].tolist()
        cuts = [0, *(i for i in range(1, len(numbers)) if numbers[i] != numbers[i - 1]), len(numbers)]
        pieces = [range(a, b) for a, b in itertools.pairwise(cuts)]
        found.append([(numbers[p.start], hidden_TE[first + p.start : first + p.stop], p) for p in pieces])
    return found


def _rows(samples: Sequence[Sample], courses: Sequence[Course], h: Hypothesis) -> Rows:
    ids, positions, numbers, lengths, first = [], [], [], [], []
    used = 0
    for sample, course in zip(samples, courses, strict=True):
        own = np.concatenate((sample.prompt_ids, sample.token_ids))[:-1].astype(np.int64)
        before = np.asarray(h.layout.before.get(sample.id, ()), np.int64)
        at = np.arange(len(own))
        if sample.id in h.layout.start:
            at = at + h.layout.shift * (at >= h.layout.start[sample.id])
        number = np.empty(len(own), np.int64)
        for span in course.layout:
            number[span.start : span.end] = span.version
        number[: min(len(h.keys.instead.get(sample.id, ())), len(sample.prompt_ids) - 1)] = -1
        ids += [before, own]
        positions += [np.arange(len(before)), at]
        numbers += [np.full(len(before), course.layout[0].version), number]
        lengths.append(len(before) + len(own))
        first.append(used + len(before) + len(sample.prompt_ids) - 1)
        used += lengths[-1]
    ids_T, positions_T, number_T = (torch.from_numpy(np.concatenate(x)) for x in (ids, positions, numbers))
    return Rows(ids_T, positions_T.clamp(min=0), tuple(lengths), number_T, tuple(first))


def _given(
    arch: Architecture, samples: Sequence[Sample], rows: Rows, held: Mapping[int, Parameters], h: Hypothesis
) -> Keys:
    """Keys that stand in the place of a sample's own first ones: those of another beginning, at the oldest weights."""
    if not h.keys.instead:
        return []
    ids, number = rows.ids_T.clone(), rows.number_T.clone()
    oldest = min(held)
    start = 0
    for sample, length in zip(samples, rows.lengths, strict=True):
        other = h.keys.instead.get(sample.id, ())[: len(sample.prompt_ids) - 1]
        ids[start : start + len(other)] = torch.tensor(other, dtype=torch.int64)
        start += length
    number[:] = oldest
    keys: Keys = []
    _pass(
        arch,
        Rows(ids, rows.positions_T, rows.lengths, number, rows.first),
        held[oldest],
        h.rounding,
        (keys, number >= 0),
    )
    return keys


def _run(arch: Architecture, rows: Rows, held: Mapping[int, Parameters], rounding: Rounding, given: Keys) -> Tensor:
    """Final hidden rows [T, E], each from the forward of its own weights."""
    keys, done_T = given, rows.number_T < 0
    hidden_TE: Tensor | None = None
    for number in sorted(n for n in set(rows.number_T.tolist()) if n >= 0):
        mine_T = rows.number_T == number
        states_TE = _pass(arch, rows, held[number], rounding, (keys, ~done_T))
        hidden_TE = states_TE if hidden_TE is None else torch.where(mine_T[:, None], states_TE, hidden_TE)
        done_T = done_T | mine_T
    assert hidden_TE is not None, "there are rows"
    return hidden_TE


def _pass(
    arch: Architecture, rows: Rows, params: Parameters, rounding: Rounding, stored: tuple[Keys, Tensor]
) -> Tensor:
    """One forward over all rows. `stored`: keys by layer, and which rows write theirs (others keep what is there)."""
    keys, writes_T = stored
    packing, scale = Packing.of(rows.lengths), attention_scale(arch)
    fresh = not keys

    def attention(layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        if rounding.kv:
            k_TKD, v_TKD = int8(k_TKD), int8(v_TKD)
        if not fresh:
            old_k, old_v = keys[layer]
            own = writes_T[:, None, None]
            k_TKD, v_TKD = torch.where(own, k_TKD, old_k), torch.where(own, v_TKD, old_v)
            keys[layer] = k_TKD, v_TKD
        else:
            keys.append((k_TKD, v_TKD))
        return packed_attention(q_THD, k_TKD.contiguous(), v_TKD.contiguous(), packing, scale)

    if not (rounding.rope or rounding.norm):
        return decoder.hidden_states(params, arch, rows.ids_T, rows.positions_T, attention)
    return _rounded(params, arch, rows, attention, rounding)


def _rounded(
    params: Parameters, arch: Architecture, rows: Rows, attention: decoder.Attention, rounding: Rounding
) -> Tensor:
    """`decoder.hidden_states` with rotary angles or norms in bf16."""
    cos, sin = rotation(frequencies(arch), rows.positions_T)
    if rounding.rope:
        cos, sin = cos.bfloat16().float(), sin.bfloat16().float()
    norm = _narrow_norm if rounding.norm else rms_norm
    x_TE = embed(params["embedding"], rows.ids_T)
    for i in range(arch.num_layers):
        normed = norm(x_TE, params[f"layers.{i}.input_norm"], arch.norm_eps)
        seen = attention(i, *_projected(params, arch, i, normed, (cos, sin), norm))
        x_TE = x_TE + linear(seen.flatten(1), params[f"layers.{i}.output"])
        normed = norm(x_TE, params[f"layers.{i}.post_norm"], arch.norm_eps)
        x_TE = x_TE + linear(silu_mul(linear(normed, params[f"layers.{i}.gate_up"])), params[f"layers.{i}.down"])
    return norm(x_TE, params["norm"], arch.norm_eps)


def _projected(
    params: Parameters, arch: Architecture, i: int, x_TE: Tensor, angles: tuple[Tensor, Tensor], norm: Norm
) -> tuple[Tensor, Tensor, Tensor]:
    H, K, D = arch.num_heads, arch.num_kv_heads, arch.head_dim
    joint = linear(x_TE, params[f"layers.{i}.qkv"], params.get(f"layers.{i}.qkv_bias")).view(-1, H + 2 * K, D)
    q, k, v = joint.split_with_sizes((H, K, K), 1)
    if f"layers.{i}.q_norm" in params:
        q = norm(q, params[f"layers.{i}.q_norm"], arch.norm_eps)
        k = norm(k, params[f"layers.{i}.k_norm"], arch.norm_eps)
    return rotate(q.contiguous(), *angles), rotate(k.contiguous(), *angles), v.contiguous()


def _narrow_norm(x: Tensor, gain_E: Tensor, eps: float) -> Tensor:
    """`rms_norm` whose every result is rounded to bf16."""
    narrow = x.bfloat16()
    mean = (narrow * narrow).float().mean(-1, keepdim=True).bfloat16()
    return (narrow * torch.rsqrt((mean + eps).float()).bfloat16() * gain_E.bfloat16()).to(x.dtype)


def int8(values: Tensor) -> Tensor:
    """Symmetric int8 and back, one scale for each row of the last dimension."""
    scale = (values.float().abs().amax(-1, keepdim=True) / 127).clamp(min=1e-9)
    return ((values.float() / scale).round() * scale).to(values.dtype)
