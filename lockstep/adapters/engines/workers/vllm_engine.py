"""vLLM as a worker: draws, scores, takes weights again, empties its prefix cache, says how it is set.

In: engine arguments, then one thing to do after the other (protocol.py). Out: tokens, logprobs, resolved settings. What
vLLM does is never corrected here: an audit is to see it as it is.
"""

from __future__ import annotations

from typing import Any

import torch
import vllm  # pyright: ignore[reportMissingImports]
from protocol import Contestant, serve


class Engine:
    """One `LLM`, and an answer for each thing that can be asked of it."""

    def __init__(self, model: str, arguments: dict[str, Any]) -> None:
        self._llm = vllm.LLM(model, **{"worker_extension_cls": "vllm_head.Head", **arguments})
        self._vllm = self._llm.llm_engine.vllm_config

    def state(self) -> dict[str, Any]:
        """Resolved settings, by vLLM's names, and the sampling defaults that it took from the model's directory."""
        model, cache, scheduler = self._vllm.model_config, self._vllm.cache_config, self._vllm.scheduler_config
        settings = {
            "logprobs_mode": str(getattr(model.logprobs_mode, "value", model.logprobs_mode)),
            "dtype": str(model.dtype).removeprefix("torch."),
            "enable_prefix_caching": bool(cache.enable_prefix_caching),
            "block_size": cache.block_size,
            "async_scheduling": bool(scheduler.async_scheduling),
            "enable_chunked_prefill": bool(scheduler.enable_chunked_prefill),
            "max_num_batched_tokens": scheduler.max_num_batched_tokens,
            "max_model_len": model.max_model_len,
            "generation_config": str(model.generation_config),
            "quantization": model.quantization,
            "kv_cache_dtype": str(cache.cache_dtype),
        }
        return {"settings": settings, "sampling_defaults": dict(model.get_diff_sampling_param())}

    def sample(self, requests: list[dict[str, Any]]) -> dict[str, Any]:
        """Completions of all requests in one batch, in their order."""
        prompts = [_prompt(request["prompt_ids"], request.get("salt")) for request in requests]
        params = [vllm.SamplingParams(**request["params"], logprobs=0, detokenize=False) for request in requests]
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        return {"outputs": [_drawn(output) for output in outputs]}

    def score(self, sequences: list[dict[str, Any]]) -> dict[str, Any]:
        """Prompt logprobs of the last `count` tokens of each sequence."""
        prompts = [_prompt(one["ids"], one.get("salt")) for one in sequences]
        params = [
            vllm.SamplingParams(max_tokens=1, temperature=one["temperature"], prompt_logprobs=0, detokenize=False)
            for one in sequences
        ]
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        pairs = zip(outputs, sequences, strict=True)
        return {"series": [_tail(output.prompt_logprobs, one["ids"], one["count"]) for output, one in pairs]}

    def update(self, path: str, remake_head: bool) -> dict[str, Any]:
        """Load the weights of a directory into the running engine; the prefix cache is left to whoever asks for it."""
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": path})
        if remake_head:
            self._llm.collective_rpc("remake_head")
        return {"done": True}

    def reset(self) -> dict[str, Any]:
        """Empty the prefix cache; vLLM says whether it did."""
        return {"done": bool(self._llm.reset_prefix_cache())}


def start(model: str, arguments: dict[str, Any], **_: Any) -> tuple[Contestant, dict[str, str]]:
    """The engine, with the arguments as given and vLLM's defaults for all others."""
    engine = Engine(model, arguments)
    asked = {name: getattr(engine, name) for name in ("state", "sample", "score", "update", "reset")}

    def worker(op: str, **question: Any) -> dict[str, Any]:
        return asked[op](**question)

    return worker, {"vllm": vllm.__version__, "torch": torch.__version__}


def _prompt(ids: list[int], salt: str | None) -> dict[str, Any]:
    return {"prompt_token_ids": ids, **({"cache_salt": salt} if salt else {})}


def _drawn(output: Any) -> dict[str, Any]:
    return {
        "prompt_ids": list(output.prompt_token_ids),
        "cached": output.num_cached_tokens,
        "completions": [
            {
                "token_ids": list(one.token_ids),
                "logprobs": [_of(step, token) for step, token in zip(one.logprobs or [], one.token_ids, strict=False)],
                "finish_reason": one.finish_reason,
            }
            for one in output.outputs
        ],
    }


def _tail(logprobs: list[Any], ids: list[int], count: int) -> list[float | None]:
    return [_of(step, token) for step, token in zip(logprobs[-count:], ids[-count:], strict=True)]


def _of(step: Any, token: int) -> float | None:
    """The logprob of a token; None where vLLM gives none. JSON's floats carry a float32 whole."""
    found = step.get(token) if step else None
    return None if found is None else float(found.logprob)


if __name__ == "__main__":
    serve(start)
