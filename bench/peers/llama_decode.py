"""llama.cpp as a contestant: bf16 weights, its low-level decode loop, greedy.

In: settings and rounds (protocol.py). Out: seconds, tokens. The prompt goes through in one batch; the key-value cache
is emptied before each round. The loop is Python around two calls of C a token.
"""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Any

import llama_cpp  # pyright: ignore[reportMissingImports]
from gguf_file import convert
from protocol import Contestant, serve


def start(model: str, gguf: str, threads: int, max_tokens: int, **_: Any) -> tuple[Contestant, dict[str, str]]:
    """A context just as long as it has to be, without flash attention, which was slower at this length in trials."""
    convert(Path(model), Path(gguf))
    llama_cpp.llama_backend_init()
    network = llama_cpp.llama_model_load_from_file(gguf.encode(), llama_cpp.llama_model_default_params())
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 256
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.n_threads = params.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(network, params)
    sampler = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    llama_cpp.llama_sampler_chain_add(sampler, llama_cpp.llama_sampler_init_greedy())
    memory = llama_cpp.llama_get_memory(context)

    def fed(ids: list[int]) -> None:
        array = (ctypes.c_int32 * len(ids))(*ids)  # the batch only points at it
        failed = llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(ids)))
        assert not failed, f"llama_decode says {failed}"

    def contestant(prompts: list[list[int]], **_: Any) -> dict[str, Any]:
        (prompt,) = prompts
        llama_cpp.llama_memory_clear(memory, True)
        began = time.perf_counter()
        fed(prompt)
        tokens = [llama_cpp.llama_sampler_sample(sampler, context, -1)]
        while len(tokens) < max_tokens:
            fed(tokens[-1:])
            tokens.append(llama_cpp.llama_sampler_sample(sampler, context, -1))
        return {"seconds": time.perf_counter() - began, "tokens": [tokens]}

    system = llama_cpp.llama_print_system_info().decode().strip()
    return contestant, {"llama-cpp-python": llama_cpp.__version__, "system": system}


if __name__ == "__main__":
    serve(start)
