"""What one request may ask of this engine, and the answer when it asks for more.

In: settings; then a `Request`. Out: how many tokens each of its completions may have, or an `InputError`. Whoever
passes here fits into an empty engine, so nothing that was accepted can get stuck.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lockstep.config import EngineConfig
from lockstep.core import Request
from lockstep.engine.kv import page_bytes
from lockstep.errors import ConfigError, InputError, message
from lockstep.kernels.adjust import require_vocabulary
from lockstep.models import Architecture

GIGABYTE = 2**30


@dataclass(frozen=True, slots=True)
class Limits:
    """`context`: prompt + completion, in tokens. `max_completions`: at work together. `page_bytes`: of all layers."""

    vocab_size: int
    context: int
    max_completions: int
    page_size: int
    num_pages: int
    page_bytes: int

    @classmethod
    def of(cls, arch: Architecture, config: EngineConfig, dtype: torch.dtype) -> Limits:
        """The limits that a configuration sets. Raises `ConfigError` if no page fits or the context is too long."""
        context = config.max_context or arch.max_context
        if context > arch.max_context:
            subject, do = "config (engine.max_context)", "Lower it, or leave it at 0"
            expected = f"at most {arch.max_context}"
            raise ConfigError(message(subject, "the model was made for less", got=context, expected=expected, do=do))
        together = min(config.max_sequences, config.max_tokens_per_step)
        size = page_bytes(arch, config.page_size, dtype)
        useful = together * _pages(context - 1, config.page_size)  # more could never be held
        num_pages = min(int(config.kv_cache_gb * GIGABYTE) // size, useful)
        if num_pages == 0:
            subject, rule = "config (engine.kv_cache_gb)", "the KV cache must hold a page"
            got, expected = f"{config.kv_cache_gb} GB", f"at least {size / GIGABYTE:.3g} GB"
            raise ConfigError(message(subject, rule, got=got, expected=expected, do="Raise it"))
        return cls(arch.vocab_size, context, together, config.page_size, num_pages, size)

    def check(self, request: Request) -> int:
        """Tokens that a completion of `request` may have: `max_tokens`, or what the context leaves if that is less.

        Raises `InputError` if the request could never run.
        """
        who = f"request ({request.id})"
        self._check_prompt(who, np.asarray(request.prompt_ids))
        self._check_stops(who, request)
        require_vocabulary(who, request.params, self.vocab_size)
        num_prompt, n = len(request.prompt_ids), request.params.n
        if num_prompt >= self.context:
            do = "Shorten the prompt, or raise engine.max_context if the model allows it"
            raise _refused(
                who, "the prompt must leave room for a token", f"{num_prompt} tokens", f"at most {self.context - 1}", do
            )
        if n > self.max_completions:
            do = "Lower n, or raise engine.max_sequences and engine.max_tokens_per_step"
            raise _refused(who, "its n completions are sampled together", n, f"at most {self.max_completions}", do)
        limit = min(request.params.max_tokens, self.context - num_prompt)
        needed = _pages(num_prompt + limit - 1, self.page_size)
        if needed > self.num_pages:
            do = f"Raise engine.kv_cache_gb to {self._gigabytes(needed)}, or lower max_tokens"
            raise _refused(
                who,
                "prompt and completion must fit into the KV cache",
                f"{needed} pages ({self._gigabytes(needed)} GB)",
                f"at most {self.num_pages} pages ({self._gigabytes(self.num_pages)} GB)",
                do,
            )
        return limit

    def _check_prompt(self, who: str, ids: np.ndarray) -> None:
        if ids.size == 0:
            raise _refused(who, "a prompt has tokens", "none", "at least one", "Drop the empty prompt")
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            got = f"{ids.dtype} {ids.shape}"
            raise _refused(who, "prompt_ids are token ids", got, "a flat sequence of integers", "Encode the text first")
        outside = ids[(ids < 0) | (ids >= self.vocab_size)]
        if outside.size:
            do = "Encode the prompt with this model's tokenizer"
            raise _refused(
                who, "token ids must be in the vocabulary", int(outside[0]), f"0 to {self.vocab_size - 1}", do
            )

    def _check_stops(self, who: str, request: Request) -> None:
        stop = request.params.stop
        if not all(isinstance(text, str) and text for text in stop):
            do = 'Write stop=("text",) with strings that are not empty'
            raise _refused(who, "stop is a tuple of strings", repr(stop), "no empty string", do)
        outside = [i for i in request.params.stop_token_ids if not 0 <= i < self.vocab_size]
        if outside:
            do = "Encode the stop token with this model's tokenizer"
            raise _refused(
                who, "stop_token_ids must be in the vocabulary", outside[0], f"0 to {self.vocab_size - 1}", do
            )

    def _gigabytes(self, pages: int) -> str:
        return f"{pages * self.page_bytes / GIGABYTE:.3g}"


def _refused(who: str, rule: str, got: object, expected: object, do: str) -> InputError:
    return InputError(message(who, rule, got=got, expected=expected, do=do))


def _pages(tokens: int, page_size: int) -> int:
    """Pages that one completion can need in all; the key of its last token is never stored."""
    return -(-tokens // page_size)
