"""Lockstep's engine as a contestant: rollouts with logprobs under the contract of `lockstep train`.

In: settings and rounds (protocol.py). Out: seconds, tokens, logprobs.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from protocol import Contestant, serve

import lockstep


def start(model: str, threads: int, max_tokens: int, **_: Any) -> tuple[Contestant, dict[str, str]]:
    """An engine in its default configuration."""
    torch.set_num_threads(threads)
    engine = lockstep.Engine.load(model)

    def contestant(prompts: list[list[int]], temperature: float, seed: int, **_: Any) -> dict[str, Any]:
        params = lockstep.SamplingParams(temperature=temperature, max_tokens=max_tokens, ignore_eos=True, seed=seed)
        requests = [lockstep.Request(str(i), tuple(ids), params) for i, ids in enumerate(prompts)]
        began = time.perf_counter()
        rollouts = engine.sample(requests)
        seconds = time.perf_counter() - began
        return {
            "seconds": seconds,
            "tokens": [rollout.token_ids.tolist() for rollout in rollouts],
            "logprobs": [rollout.sampler_logprobs.values.tolist() for rollout in rollouts],
        }

    return contestant, {"lockstep": lockstep.__version__, "torch": torch.__version__}


if __name__ == "__main__":
    serve(start)
