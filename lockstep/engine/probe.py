"""Do these weights, as a forward would use them, give the logprobs that their publisher gave?

In: a generation that does not serve yet, a `Probe`. Out: nothing, or `NumericsError`. One short forward over keys of
its own; it touches neither the cache nor the generation that serves.

Letters: N tokens, H query heads, K kv heads, D head dim.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lockstep.errors import NumericsError, message
from lockstep.kernels.attention import Packing, packed_attention
from lockstep.kernels.head import Targets, target_logprobs
from lockstep.models import Architecture
from lockstep.models.decoder import attention_scale, hidden_states
from lockstep.weight_update import Probe

if TYPE_CHECKING:
    from lockstep.engine.weights import Generation


def require_probe(probe: Probe, generation: Generation, arch: Architecture) -> None:
    """Raise `NumericsError` unless every logprob of the probe has the publisher's bits."""
    device = generation.device
    ids_N = torch.from_numpy(probe.token_ids.astype(np.int64)).to(device)
    packing, scale = Packing.of([len(ids_N)], device), attention_scale(arch)

    def attention(_: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> Tensor:
        return packed_attention(q_NHD, k_NKD, v_NKD, packing, scale)

    with torch.inference_mode():
        positions_N = torch.arange(len(ids_N), device=device)
        hidden = hidden_states(generation.prepared.operands, arch, ids_N, positions_N, attention)
        targets = Targets(ids_N[1:], 1.0)
        got = target_logprobs(hidden[:-1], generation.prepared.head, targets)[0].cpu().numpy()
    unequal = np.flatnonzero(got.view(np.int32) != probe.logprobs.view(np.int32))
    if unequal.size:
        at = int(unequal[0])
        raise NumericsError(
            message(
                f"weights (version {generation.version})", f"probe token {at + 1} must have the publisher's logprob",
                got=repr(float(got[at])), expected=repr(float(probe.logprobs[at])),
                do="Look for a copy that was not made anew; the older weights still serve",
            )
        )  # fmt: skip
