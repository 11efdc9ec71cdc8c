"""Lockstep's engine without its exactness: SDPA over dense keys, the library's products at whatever number of rows.

In: settings and rounds (protocol.py). Out: seconds, tokens, logprobs.

Scheduler, cache pages, sampler and all small kernels are the engine's own. Weights are laid out for oneDNN once, keys
of a sequence lie side by side in a cache of fixed size: what an engine does that owes nobody equal bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lockstep_engine import start
from protocol import serve
from torch import Tensor

from lockstep.engine import engine
from lockstep.engine.kv import KeyValues
from lockstep.engine.scheduler import Step
from lockstep.engine.weights import Generation
from lockstep.kernels import head
from lockstep.kernels.linear import Packed
from lockstep.models import Architecture, decoder

SEQUENCES, CONTEXT = 64, 192
"""Room of the dense cache: the work of the row, and no more."""


class Plan(NamedTuple):
    """Pieces (row of the cache, first position, tokens) of a step that reads prompts; of any other, one token of each
    of `rows`, at positions `at`. `whole`: the rows are all of the cache, in order."""

    pieces: list[tuple[int, int, int]]
    rows: Tensor = torch.empty(0)
    at: Tensor = torch.empty(0)
    mask: Tensor = torch.empty(0)
    whole: bool = False


class Dense:
    """Keys and values [L, 2, S, K, C, D] of the sequences in flight, each in a row of its own."""

    def __init__(self, arch: Architecture) -> None:
        shape = (arch.num_layers, 2, SEQUENCES, arch.num_kv_heads, CONTEXT, arch.head_dim)
        self.store = torch.zeros(shape, dtype=torch.bfloat16)
        self._rows: dict[int, int] = {}

    def rows(self, step: Step) -> list[int]:
        """Where the completions of a step lie. A batch that begins anew has all rows."""
        if any(start == 0 for start in step.starts):
            waiting = {id(c) for c, start in zip(step.completions, step.starts, strict=True) if start}
            self._rows = {key: row for key, row in self._rows.items() if key in waiting}
        free = iter(sorted(set(range(SEQUENCES)) - set(self._rows.values())))
        for completion in step.completions:
            if id(completion) not in self._rows:
                self._rows[id(completion)] = next(free)
        return [self._rows[id(completion)] for completion in step.completions]

    def plan(self, step: Step) -> Plan:
        """What all layers of a step have in common."""
        rows, starts = self.rows(step), torch.tensor(step.starts)
        if any(count > 1 for count in step.counts):
            return Plan(list(zip(rows, step.starts, step.counts, strict=True)))
        longest = int(starts.max()) + 1
        mask = (torch.arange(longest)[None, :] <= starts[:, None])[:, None, None, :]
        return Plan([], torch.tensor(rows), starts, mask, rows == list(range(SEQUENCES)))

    def attend(self, plan: Plan, layer: int, qkv: tuple[Tensor, Tensor, Tensor], scale: float) -> Tensor:
        """Rows [T, H, D] of the step's tokens."""
        keys, values = self.store[layer]
        if not plan.pieces:
            return _decode((keys, values), plan, qkv, scale)
        out, first = [], 0
        for row, at, count in plan.pieces:
            q, k, v = (x[first : first + count].transpose(0, 1) for x in qkv)
            end = at + count
            keys[row, :, at:end], values[row, :, at:end] = k, v
            mask = torch.arange(end)[None, :] <= torch.arange(at, end)[:, None]
            group = q.shape[0] // k.shape[0]
            every = (side[row : row + 1, :, :end].repeat_interleave(group, 1) for side in (keys, values))
            seen = F.scaled_dot_product_attention(q[None], *every, attn_mask=mask, scale=scale)
            out.append(seen[0])
            first += count
        return torch.cat([part.transpose(0, 1) for part in out])


def _decode(cache: tuple[Tensor, Tensor], plan: Plan, qkv: tuple[Tensor, Tensor, Tensor], scale: float) -> Tensor:
    q, k, v = qkv
    for side, new in zip(cache, (k, v), strict=True):
        side[plan.rows, :, plan.at] = new
    longest = plan.mask.shape[-1]
    keys, values = (side[:, :, :longest] if plan.whole else side[plan.rows, :, :longest] for side in cache)
    # The heads of a group are rows of one: the flash kernel takes that, and nothing is repeated.
    grouped = q.unflatten(1, (k.shape[1], -1))
    return F.scaled_dot_product_attention(grouped, keys, values, attn_mask=plan.mask, scale=scale).flatten(1, 2)


class Products:
    """Weights laid out for oneDNN, once each."""

    def __init__(self) -> None:
        self._laid: dict[int, Tensor] = {}

    def linear(self, x: Tensor, weight: Tensor | Packed, bias: Tensor | None = None) -> Tensor:
        """All rows at once, whatever their number."""
        plain = weight.weight_OI if isinstance(weight, Packed) else weight
        if plain.data_ptr() not in self._laid:
            self._laid[plain.data_ptr()] = torch.ops.mkldnn._reorder_linear_weight(plain, SEQUENCES)
        return torch.ops.mkldnn._linear_pointwise(x, self._laid[plain.data_ptr()], bias, "none", [], "")


def set_free() -> None:
    """Take the exact parts out of this process's engine."""
    products, kept = Products(), {}
    decoder.linear = products.linear
    head.linear = lambda x, weight, bias=None: products.linear(x.to(torch.bfloat16), weight, bias)

    def last_hidden(step: Step, generation: Generation, arch: Architecture, _: KeyValues) -> Tensor:
        dense = kept.setdefault("dense", Dense(arch))
        scale = decoder.attention_scale(arch)
        spans = list(zip(step.completions, step.starts, step.counts, strict=True))
        ids = torch.cat([torch.as_tensor(c.tokens[at : at + n]) for c, at, n in spans]).long()
        positions = torch.cat([torch.arange(at, at + n) for _, at, n in spans])
        plan = dense.plan(step)
        hidden = decoder.hidden_states(
            generation.prepared.operands, arch, ids, positions,
            lambda layer, q, k, v: dense.attend(plan, layer, (q, k, v), scale),
        )  # fmt: skip
        return hidden[torch.tensor(step.counts).cumsum(0) - 1]

    engine.last_hidden = last_hidden


def start_free(**settings: Any) -> Any:
    """The engine of lockstep_engine.py, freed."""
    set_free()
    return start(**settings)


if __name__ == "__main__":
    serve(start_free)
