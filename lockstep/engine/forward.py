"""One forward pass over all tokens of a step, whatever completions and chunks they belong to.

In: a `Step` and the serving generation. Out: the hidden row that decides each completion's next token. Keys and values
of the step's tokens are in the cache afterwards.

Letters: T packed tokens, S completions, E hidden size, K kv heads, D head dim.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lockstep.engine.kv import KeyValues
from lockstep.engine.scheduler import Step
from lockstep.engine.weights import Generation
from lockstep.kernels.attention import paged_attention, plan_tiles, slots, write_kv
from lockstep.models import Architecture
from lockstep.models.decoder import attention_scale, hidden_states


def last_hidden(step: Step, generation: Generation, arch: Architecture, kv: KeyValues) -> Tensor:
    """Hidden rows [S, E] of the last token that each completion of the step runs."""
    kv.copy(step.copies)
    device = generation.head_VE.device
    starts, counts = np.asarray(step.starts), np.asarray(step.counts)
    ends = counts.cumsum()
    tables = [kv.blocks(completion.pages) for completion in step.completions]
    ids = [c.tokens[a : a + n] for c, a, n in zip(step.completions, step.starts, step.counts, strict=True)]
    positions = np.arange(ends[-1]) + np.repeat(starts - ends + counts, counts)
    rows = np.stack((np.concatenate(ids), positions, slots(step.starts, step.counts, tables).numpy()))
    ids_T, positions_T, slots_T = torch.from_numpy(rows).to(device)
    tiles = plan_tiles(step.starts, step.counts, tables, device=device)
    scale = attention_scale(arch)

    def attention(layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        keys, values = kv.layers[layer]
        write_kv(keys, k_TKD, slots_T)
        write_kv(values, v_TKD, slots_T)
        return paged_attention(q_THD, keys, values, tiles, scale)

    hidden_TE = hidden_states(generation.params, arch, ids_T, positions_T, attention)
    return hidden_TE[torch.from_numpy(ends - 1).to(device)]
