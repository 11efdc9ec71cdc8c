"""transformers' `generate` as a contestant: bf16, SDPA, left padding, static batch.

In: settings and rounds (protocol.py). Out: seconds, tokens, and logprobs where they are asked for.

The clock holds what a user does to get logprobs: `output_scores`, then `compute_transition_scores`. Without them this
is the fastest way there is. Not stopping at the end-of-text token is asked for by having none; `min_new_tokens` would
forbid the token instead, which is another distribution.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import transformers
from protocol import Contestant, serve


def start(model: str, threads: int, max_tokens: int, logprobs: bool, **_: Any) -> tuple[Contestant, dict[str, str]]:
    """The model in bf16, in evaluation mode."""
    torch.set_num_threads(threads)
    network: Any = transformers.AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.bfloat16, attn_implementation="sdpa"
    )
    network.eval()
    network.generation_config.eos_token_id = None
    how = {"do_sample": True, "top_k": 0, "top_p": 1.0, "max_new_tokens": max_tokens, "pad_token_id": 0}
    how |= {"output_scores": logprobs, "return_dict_in_generate": True}

    def contestant(prompts: list[list[int]], temperature: float, seed: int, **_: Any) -> dict[str, Any]:
        torch.manual_seed(seed)
        began = time.perf_counter()
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(one)) + one for one in prompts])
        mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in prompts])
        with torch.inference_mode():
            drawn: Any = network.generate(input_ids=ids, attention_mask=mask, temperature=temperature, **how)
            tokens = drawn.sequences[:, width:].tolist()
            found: dict[str, Any] = {"tokens": tokens}
            if logprobs:
                scores = network.compute_transition_scores(drawn.sequences, drawn.scores, normalize_logits=True)
                found["logprobs"] = scores.tolist()
        return {"seconds": time.perf_counter() - began, **found}

    return contestant, {"transformers": transformers.__version__, "torch": torch.__version__}


if __name__ == "__main__":
    serve(start)
