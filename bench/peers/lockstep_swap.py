"""New weights for Lockstep's engine while sequences are in flight, and its sampler, timed.

In: settings and rounds (protocol.py). Out: seconds of each part.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from protocol import Contestant, serve

import lockstep
from lockstep.core import SamplingParams
from lockstep.engine import Engine
from lockstep.kernels.sampling import sample
from lockstep.models import load
from lockstep.models.checkpoint import digest, read_parameters
from lockstep.weight_update import WeightVersion

STEPS_BEFORE = 4  # of the engine, in which every prompt is read


def start(model: str, threads: int, sequences: int, max_tokens: int, **_: Any) -> tuple[Contestant, dict[str, str]]:
    """An engine with work, and weights that differ a little from its own."""
    torch.set_num_threads(threads)
    found = load(model)
    params = read_parameters(found.path, found.arch, torch.bfloat16)
    engine = Engine(found, params, WeightVersion(0, digest(params)))
    versions = [params, {name: tensor * 1.001 for name, tensor in params.items()}]
    digests = [digest(one) for one in versions]

    def swap(number: int, prepared: bool, prompts: list[list[int]]) -> dict[str, Any]:
        """Update in the middle of `sequences` sequences; how long no step could run, and what came of the tokens."""
        request = SamplingParams(max_tokens=max_tokens, ignore_eos=True, seed=number)
        for i, ids in enumerate(prompts):
            engine.add(lockstep.Request(f"{number}/{i}", tuple(ids), request))
        done = [rollout for _ in range(STEPS_BEFORE) for rollout in engine.step()]
        new, version = versions[number % 2], WeightVersion(number, digests[number % 2])
        if prepared:
            update = engine.begin_update(version)
            for name, tensor in new.items():
                update.stage(name, tensor)
            update.prepare()
            seconds = _timed(lambda: engine.finish_update(update))
        else:
            seconds = _timed(lambda: engine.update_weights(new, version, share=True))
        while engine.has_work:
            done += engine.step()
        drawn = sum(len(rollout.token_ids) for rollout in done)
        return {"seconds": seconds, "lost": sequences * max_tokens - drawn}

    def contestant(number: int, prompts: list[list[int]]) -> dict[str, Any]:
        at_once = swap(2 * number + 1, False, prompts)
        prepared = swap(2 * number + 2, True, prompts)
        logits = torch.randn(sequences, found.arch.vocab_size, generator=torch.Generator().manual_seed(number))
        settings = [SamplingParams() for _ in range(sequences)]
        drawing = min(_timed(lambda: sample(logits, settings, [0.5] * sequences)) for _ in range(9))
        return {
            "seconds": prepared["seconds"],
            "at_once": at_once["seconds"],
            "lost": at_once["lost"] + prepared["lost"],
            "sampler": drawing,
        }

    return contestant, {"lockstep": lockstep.__version__, "torch": torch.__version__}


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    serve(start)
