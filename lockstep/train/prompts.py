"""Logprobs of prompts, as an engine gives them when `prompt_logprobs` is asked for, from the trainer's packed forward.

In: rollouts, weights. Out: the logprobs of each rollout's `prompt_ids[1:]`: nothing adjusted, nothing truncated.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lockstep.core import Contract, Logprobs, Rollout
from lockstep.kernels.head import Targets
from lockstep.models.prepared import Prepared
from lockstep.train.batch import pack, plan
from lockstep.train.forward import Forward


def score_prompts(
    forward: Forward, weights: Prepared, version: int, rollouts: Sequence[Rollout], max_tokens: int
) -> list[Logprobs]:
    """One `Logprobs` float32 [P - 1] a rollout, at weight `version`, in packings of at most `max_tokens` rows.

    A prompt is a sequence whose first token is given. Equal prompts are run once. Raises as `Forward.require_rollout`.
    """
    device = weights.head.content.device
    wanted: dict[tuple[bytes, Contract], np.ndarray] = {}
    keys = []
    for rollout in rollouts:
        forward.require_rollout(rollout)
        versions = (version,) if len(rollout.prompt_ids) > 1 else ()  # no weights gave what is not there
        contract = Contract.of_prompt(rollout.params, forward.head_dtype, versions)
        keys.append((np.asarray(rollout.prompt_ids, np.int64).tobytes(), contract))
        wanted.setdefault(keys[-1], rollout.prompt_ids)
    names = [key for key, prompt in wanted.items() if len(prompt) > 1]
    pairs = [(wanted[name][:1], wanted[name][1:]) for name in names]
    found = {key: np.empty(0, np.float32) for key in wanted}
    with torch.no_grad():
        for contract in dict.fromkeys(contract for _, contract in names):
            members = [i for i, (_, other) in enumerate(names) if other == contract]
            for chosen in plan(pairs, members, max_tokens):
                packed = pack(pairs, chosen, device)
                targets = Targets(packed.targets_N, contract.temperature)
                values = forward.logprobs(weights, packed, targets)[0].cpu().numpy()
                found |= {names[i]: piece for i, piece in zip(chosen, packed.split(values), strict=True)}
    return [Logprobs(found[key], key[1]) for key in keys]
