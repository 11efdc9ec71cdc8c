"""The forms in which a prompt may be given.

In: a string, chat messages, or a list of such. Out: token ids, one list a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lockstep.core import Message
from lockstep.errors import InputError, message
from lockstep.models import Tokenizer

Prompt = str | Sequence[Message]


def encode_all(tokenizer: Tokenizer, prompt: Prompt | Sequence[Prompt], *, chat: bool) -> list[tuple[int, ...]]:
    """Token ids of one prompt or of several. Raises `InputError` for no prompt at all, or a value of another kind."""
    if isinstance(prompt, str | Mapping):
        return [_encode(tokenizer, prompt, chat)]
    if not isinstance(prompt, Sequence):
        raise _unusable(repr(prompt))
    if not prompt:
        do = "Pass a string, a conversation, or a list of them that is not empty"
        raise InputError(message("prompts", "there must be a prompt", got="none", expected="at least one", do=do))
    if all(isinstance(item, Mapping) for item in prompt):
        return [_encode(tokenizer, prompt, chat)]
    return [_encode(tokenizer, item, chat) for item in prompt]


def _encode(tokenizer: Tokenizer, prompt: Any, chat: bool) -> tuple[int, ...]:
    """A plain string is one user message to a chat model, unless the caller asks for a raw completion."""
    if isinstance(prompt, str):
        as_message = chat and tokenizer.chats
        return tuple(tokenizer.encode_prompt([{"role": "user", "content": prompt}] if as_message else prompt))
    if isinstance(prompt, Mapping):
        prompt = [prompt]
    if not isinstance(prompt, Sequence) or not prompt or not all(isinstance(item, Mapping) for item in prompt):
        raise _unusable(repr(prompt))
    return tuple(tokenizer.encode_prompt(prompt))


def _unusable(got: str) -> InputError:
    expected = "a string or a list of messages with role and content"
    return InputError(message("prompt", "not usable", got=got, expected=expected, do="Encode token ids as a Request"))
