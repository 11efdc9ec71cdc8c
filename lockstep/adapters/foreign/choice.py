"""One choice of a response: which tokens, and their logprobs.

In: a choice of a completion (`logprobs.token_logprobs`) or of a chat completion (`logprobs.content`). Out: a `Sample`.
Ids are those of `token_ids` (`return_token_ids`), or read off tokens that are written ``token_id:17``
(`return_tokens_as_token_ids`); without them logprobs belong to no ids and are left out. vLLM writes -9999.0 for
whatever is smaller, minus infinity too; a null logprob is NaN here. `prompt_logprobs` are checked and not compared:
nobody drew those tokens. With `echo` the prompt comes first, and its first logprob is null: it is cut off.

Source: as responses.py; `max(logprob, -9999.0)` in vllm/entrypoints/openai/serving_completion.py of v0.10.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lockstep.adapters.foreign.gaps import Gaps
from lockstep.adapters.foreign.row import LAST_ID, Row
from lockstep.adapters.foreign.turns import NO_IDS
from lockstep.core import SamplingParams
from lockstep.parity.observation import Sample

WRITTEN = "token_id:"


@dataclass(frozen=True, slots=True, eq=False)
class Response:
    """What the choices of one response share. `num_cached`: prompt tokens from the prefix cache, if it says so."""

    name: str
    prompt_ids: np.ndarray | None
    params: SamplingParams | None
    num_cached: int | None

    @classmethod
    def of(cls, body: Row, params: SamplingParams | None, name: str | None) -> Response:
        """Of its body; `name` is what a batch calls it."""
        name = name or body.text("id") or body.text("request_id") or body.place
        _check_prompt_logprobs(body)
        usage = body.row("usage")
        details = None if usage is None else usage.row("prompt_tokens_details")
        alone = len(body.rows("choices") or []) == 1  # the figure is the request's, not a choice's
        cached = details.integer("cached_tokens") if details is not None and alone else None
        return cls(name, body.ids("prompt_token_ids"), params, cached)


def sample(choice: Row, response: Response, gaps: Gaps) -> Sample:
    """The sample of a choice; what it lacks is noted."""
    prompt, tokens = choice.ids("prompt_token_ids"), choice.ids("token_ids")
    _check_prompt_logprobs(choice)
    prompt = response.prompt_ids if prompt is None else prompt
    words, logprobs = _logprobs(choice)
    if logprobs is not None and tokens is not None and prompt is not None and _echoed(logprobs, prompt, tokens):
        words, logprobs = words[len(prompt) :], logprobs[len(prompt) :]
    tokens = _written(words, choice) if tokens is None else tokens
    if tokens is None and logprobs is not None:
        gaps.add(f"{choice.place}: the tokens of {choice.within.rstrip('.')} are texts, so their logprobs are left out")
    return Sample(
        f"{response.name}/{choice.integer('index') or 0}",
        NO_IDS if prompt is None else prompt,
        NO_IDS if tokens is None else tokens,
        sampler=None if tokens is None else logprobs,
        params=response.params,
        group=response.name,
        num_cached=response.num_cached,
        finish_reason=choice.text("finish_reason") or "",
        text=_text(choice),
    )


def _logprobs(choice: Row) -> tuple[list[str | None], np.ndarray | None]:
    """Tokens as they are written, and their logprobs, of either endpoint."""
    inner = choice.row("logprobs")
    if inner is None:
        return [], None
    content = inner.rows("content")
    if content is not None:
        values = [entry.number("logprob") for entry in content]
        flat = Row(choice.place, {"logprob": values}, f"{choice.within}logprobs.content.")
        return [entry.text("token") for entry in content], flat.floats("logprob")
    words, values = inner.items("tokens"), inner.floats("token_logprobs")
    if values is None:
        return [], None
    if len(words) != len(values):
        raise inner.wrong("tokens", "not as many tokens as token_logprobs", f"a list of {len(values)} texts")
    return [word if isinstance(word, str) else None for word in words], values


def _written(words: list[str | None], choice: Row) -> np.ndarray | None:
    """Ids of tokens that are written as such; None if one is not."""
    if not words or not all(word is not None and word.startswith(WRITTEN) for word in words):
        return None
    numbers = [(word or "").removeprefix(WRITTEN) for word in words]
    if not all(number.isascii() and number.isdecimal() and int(number[:11]) <= LAST_ID for number in numbers):
        raise choice.wrong("logprobs", f"a token {WRITTEN} without an id", f"{WRITTEN}N, N at most {LAST_ID}")
    return np.array([int(number) for number in numbers], np.int32)


def _echoed(logprobs: np.ndarray, prompt: np.ndarray, tokens: np.ndarray) -> bool:
    return len(prompt) > 0 and len(logprobs) == len(prompt) + len(tokens) and bool(np.isnan(logprobs[0]))


def _text(choice: Row) -> str | None:
    said = choice.row("message")
    return choice.text("text") if said is None else said.text("content")


def _check_prompt_logprobs(row: Row) -> None:
    """Each is null, or what the engine gives to some ids at that position: ``{"17": {"logprob": -0.5, ...}}``."""
    for at, entry in enumerate(row.items("prompt_logprobs")):
        if entry is None:
            continue
        inner = Row.of(row.place, entry, f"{row.within}prompt_logprobs[{at}].")
        for name in inner.tree:
            (inner.row(name) or inner).number("logprob")
