"""Answers problems greedily with the weights of an HF directory, whoever wrote it: one examiner for all trainers.

In: problems, then directories. Out: for each how many it passed, and of how many.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from protocol import Contestant, serve
from reward import exact_integer

import lockstep


def start(threads: int, max_tokens: int, problems: list[list[Any]], **_: Any) -> tuple[Contestant, dict[str, str]]:
    """`problems`: pairs of messages and the right answer."""
    torch.set_num_threads(threads)
    params = lockstep.SamplingParams(temperature=0.0, max_tokens=max_tokens)

    def contestant(path: str) -> dict[str, Any]:
        began = time.perf_counter()
        engine = lockstep.Engine.load(str(Path(path)), kv_cache_gb=0.2)
        rollouts = engine.generate([prompt for prompt, _ in problems], params)
        passed = sum(exact_integer([rollout.text for rollout in rollouts], [answer for _, answer in problems]))
        return {"seconds": time.perf_counter() - began, "passed": int(passed), "total": len(problems)}

    return contestant, {"lockstep": lockstep.__version__}


if __name__ == "__main__":
    serve(start)
