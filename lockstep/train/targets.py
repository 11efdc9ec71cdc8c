"""What the head is told about tokens that somebody drew: their ids, and everything that made their distribution.

In: rollouts of one contract, and which of their tokens. Out: `Targets`. The only place where the trainer builds them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lockstep.core import Rollout, Support
from lockstep.kernels.adjust import History
from lockstep.kernels.head import Targets


def targets_of(
    rollouts: Sequence[Rollout], device: str | torch.device = "cpu", tokens: Sequence[range] | None = None
) -> Targets:
    """Targets of consecutive rollouts that share a contract (but for the version): all tokens, or `tokens[i]` of each.

    Token t of a rollout counts from 0 at its first drawn token; the ranges have step 1.
    """
    assert rollouts, "targets of nothing"
    parts = tokens or [range(len(rollout.token_ids)) for rollout in rollouts]
    ids = [rollout.token_ids[part.start : part.stop] for rollout, part in zip(rollouts, parts, strict=True)]
    supports = [
        cut_support(rollout.support, part)
        for rollout, part in zip(rollouts, parts, strict=True)
        if rollout.support is not None
    ]
    ids_N = torch.from_numpy(np.concatenate(ids).astype(np.int64)).to(device)
    histories: list[History | None] = []
    if any(rollout.params.adjusts for rollout in rollouts):
        for rollout, part in zip(rollouts, parts, strict=True):
            histories += histories_of(rollout, part)
    return Targets(ids_N, rollouts[0].sampler_logprobs.contract.temperature, join_supports(supports), histories)


def histories_of(rollout: Rollout, tokens: range) -> list[History | None]:
    """What came before some tokens, for the adjustment of their logits; None each if there is none."""
    if not rollout.params.adjusts:
        return [None] * len(tokens)
    return [History(rollout.params, rollout.prompt_ids, rollout.token_ids[:t]) for t in tokens]


def cut_support(support: Support, tokens: range) -> Support:
    """The supports of some tokens."""
    offsets = support.offsets[tokens.start : tokens.stop + 1]
    return Support(support.ids[offsets[0] : offsets[-1]], offsets - offsets[0])


def join_supports(supports: Sequence[Support]) -> Support | None:
    """Supports of consecutive tokens as one; None if there are none, because nothing was truncated."""
    if not supports:
        return None
    sizes = np.concatenate([np.diff(support.offsets) for support in supports])
    return Support(np.concatenate([support.ids for support in supports]), np.concatenate(([0], np.cumsum(sizes))))
