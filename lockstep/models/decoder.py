"""The one model definition of the Llama, Qwen2 and Qwen3 dense families, used by the engine and by the trainer.

In: parameters (a plain mapping, internal names; weights of products may be packed, see prepared.py), token ids,
positions, and the caller's attention. Out: hidden states. The caller decides where keys live (paged cache or packed
batch); everything else is common.

    ids -> embedding -> [ norm -> qkv -> rope -> attention -> output -> + -> norm -> gate_up -> silu*up -> down -> +]
                                                                                            -> norm

Letters: T packed tokens, E hidden size, H query heads, K kv heads, D head dim, V vocabulary, N rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lockstep.kernels.activation import silu_mul
from lockstep.kernels.attention import PREFILL_TILE, Tiles, paged_attention, write_kv
from lockstep.kernels.embedding import embed
from lockstep.kernels.linear import Packed, linear
from lockstep.kernels.native.library import operators_for
from lockstep.kernels.norm import add_rms_norm, rms_norm
from lockstep.kernels.rope import inverse_frequencies, rotate, rotation
from lockstep.models.architecture import Architecture

PRODUCTS = ("qkv", "output", "gate_up", "down")
"""Parts of a layer that are weights of products."""
LAYER_PARTS = ("input_norm", "qkv", "qkv_bias", "q_norm", "k_norm", "output", "post_norm", "gate_up", "down")
"""Parts of a layer in the order of native/layers.h; a family may lack biases and norms of heads."""

Parameters = Mapping[str, Tensor]
Operands = Mapping[str, Tensor | Packed]
"""Parameters, of which weights of products may be packed: same bits, less time."""
Attention = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q_THD, k_TKD, v_TKD) -> rows [T, H, D]; keys are rotated already."""


def hidden_states(
    params: Operands, arch: Architecture, ids_T: Tensor, positions_T: Tensor, attention: Attention
) -> Tensor:
    """Hidden states after the final norm, [T, E] in the dtype of the parameters."""
    x_TE = embed(_plain(params, "embedding"), ids_T)
    cos, sin = rotation(frequencies(arch).to(ids_T.device), positions_T)
    gains = [_plain(params, f"layers.{i}.input_norm") for i in range(arch.num_layers)] + [_plain(params, "norm")]
    normed = rms_norm(x_TE, gains[0], arch.norm_eps)
    for i in range(arch.num_layers):
        seen = attention(i, *_project(params, arch, i, normed, (cos, sin)))
        delta = linear(seen.flatten(1), params[f"layers.{i}.output"])
        x_TE, normed = add_rms_norm(x_TE, delta, _plain(params, f"layers.{i}.post_norm"), arch.norm_eps)
        delta = linear(silu_mul(linear(normed, params[f"layers.{i}.gate_up"])), params[f"layers.{i}.down"])
        x_TE, normed = add_rms_norm(x_TE, delta, gains[i + 1], arch.norm_eps)
    return normed


@dataclass(frozen=True, slots=True, eq=False)
class PagedKeys:
    """Where a forward finds keys and values and leaves those of its own rows: `store` [L, 2, N, K, B, D], the plan of
    which row sees which blocks, and each row's slot."""

    store: Tensor
    tiles: Tiles
    slots_T: Tensor


@torch.no_grad()
def paged_hidden_states(
    params: Operands, arch: Architecture, ids_T: Tensor, positions_T: Tensor, keys: PagedKeys
) -> Tensor:
    """`hidden_states` over paged keys, without gradients. Where the C++ kernels have every weight, all layers are one
    call (native/layers.cpp): the same steps in the same order, and the same bits."""
    scale = attention_scale(arch)
    operators, parts = operators_for(_plain(params, "norm"), keys.store), None
    if operators is not None:
        parts = _parts(params, arch)
    if operators is None or parts is None:

        def attention(layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
            own_keys, own_values = keys.store[layer]
            write_kv((own_keys, own_values), k_TKD, v_TKD, keys.slots_T)
            return paged_attention(q_THD, own_keys, own_values, keys.tiles, scale)

        return hidden_states(params, arch, ids_T, positions_T, attention)
    x_TE = embed(_plain(params, "embedding"), ids_T)
    angles = rotation(frequencies(arch).to(ids_T.device), positions_T)
    sizes = (arch.num_heads, arch.intermediate_size, keys.tiles.tile or PREFILL_TILE)
    where = (*keys.tiles.native, keys.slots_T)
    return operators.layers(x_TE, parts, keys.store, angles, where, sizes, arch.norm_eps, scale)


def _parts(params: Operands, arch: Architecture) -> list[Tensor | None] | None:
    """The operands of all layers as native/layers.cpp takes them; None where a weight is not laid out for it."""
    out: list[Tensor | None] = []
    for i in range(arch.num_layers):
        for name in LAYER_PARTS:
            part = params.get(f"layers.{i}.{name}")
            if isinstance(part, Packed):
                part.require_current()
                if not part.panels or part.wide:
                    return None
                part = part.content
            elif name in PRODUCTS:
                return None
            out.append(part)
    return [*out, _plain(params, "norm")]


def attention_scale(arch: Architecture) -> float:
    """1 / sqrt(D)."""
    return 1.0 / math.sqrt(arch.head_dim)


def frequencies(arch: Architecture) -> Tensor:
    """Rotary frequencies fp32 [D/2], stretched as in Llama 3.1 where the architecture says so.

    Wavelengths beyond the original context are stretched by the factor, short ones kept, those between interpolated.
    """
    plain = inverse_frequencies(arch.head_dim, arch.rope_theta)
    scaling = arch.rope_scaling
    if scaling is None:
        return plain
    context, low, high = scaling.original_max_position_embeddings, scaling.low_freq_factor, scaling.high_freq_factor
    wavelength = 2 * math.pi / plain
    kept = (context / wavelength - low) / (high - low)
    between = (1 - kept) * plain / scaling.factor + kept * plain
    stretched = torch.where(wavelength > context / low, plain / scaling.factor, plain)
    return torch.where((wavelength >= context / high) & (wavelength <= context / low), between, stretched)


def _plain(params: Operands, name: str) -> Tensor:
    found = params[name]
    assert isinstance(found, Tensor), f"{name} is not the weight of a product: it is never packed"
    return found


def _project(
    params: Operands, arch: Architecture, i: int, x_TE: Tensor, angles: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys, rotated, and values."""
    H, K, D = arch.num_heads, arch.num_kv_heads, arch.head_dim
    bias = _plain(params, f"layers.{i}.qkv_bias") if f"layers.{i}.qkv_bias" in params else None
    joint = linear(x_TE, params[f"layers.{i}.qkv"], bias).view(-1, H + 2 * K, D)
    if f"layers.{i}.q_norm" in params:
        q, k, v = joint.split_with_sizes((H, K, K), 1)
        q = rms_norm(q, _plain(params, f"layers.{i}.q_norm"), arch.norm_eps)
        k = rms_norm(k, _plain(params, f"layers.{i}.k_norm"), arch.norm_eps)
        return rotate(q, *angles), rotate(k, *angles), v
    turning, v = joint.split_with_sizes((H + K, K), 1)
    q, k = rotate(turning, *angles).split_with_sizes((H, K), 1)
    return q, k, v
