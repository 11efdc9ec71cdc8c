"""vLLM's CPU backend as a contestant: offline `LLM`, compiled, processed logprobs of the drawn tokens.

In: settings and rounds (protocol.py). Out: seconds, tokens, logprobs. The environment variables that decide how it
runs are those of bench/rollout.py.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import vllm  # pyright: ignore[reportMissingImports]
from protocol import Contestant, serve


def start(model: str, max_tokens: int, max_length: int, **_: Any) -> tuple[Contestant, dict[str, str]]:
    """An engine with room for all sequences at once, so that nothing waits and nothing is preempted."""
    engine = vllm.LLM(
        model,
        dtype="bfloat16",
        max_model_len=max_length,
        max_num_seqs=256,
        enable_prefix_caching=False,
        logprobs_mode="processed_logprobs",
        generation_config="vllm",
        seed=0,
    )

    def contestant(prompts: list[list[int]], temperature: float, **_: Any) -> dict[str, Any]:
        params = vllm.SamplingParams(
            # A seed for each request would be honest too, but slower: vLLM then draws row by row.
            temperature=temperature, max_tokens=max_tokens, ignore_eos=True, seed=None, logprobs=0, detokenize=False,
        )  # fmt: skip
        began = time.perf_counter()
        outputs = engine.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        seconds = time.perf_counter() - began
        drawn = [output.outputs[0] for output in outputs]
        return {
            "seconds": seconds,
            "tokens": [list(one.token_ids) for one in drawn],
            "logprobs": [
                [step[token].logprob for step, token in zip(one.logprobs, one.token_ids, strict=True)] for one in drawn
            ],
        }

    return contestant, {"vllm": vllm.__version__, "torch": torch.__version__}


if __name__ == "__main__":
    serve(start)
