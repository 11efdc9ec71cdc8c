"""What an engine holds, and what has happened in it, as numbers.

In: nothing. Out: frozen values that `Engine.memory` and `Engine.counters` fill in.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Memory:
    """Pages of the KV cache (`cached` ones are held by nobody and may be found again, or give way) and bytes held."""

    pages_free: int
    pages_used: int
    pages_cached: int
    page_bytes: int
    kv_bytes: int
    weight_bytes: int


@dataclass(frozen=True, slots=True)
class Counters:
    """Tokens whose keys were found in the prefix cache, and completions that lost their pages and ran again."""

    prefix_tokens: int
    preemptions: int
