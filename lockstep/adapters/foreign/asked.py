"""Sampling parameters as a request or a log of calls names them.

In: a row of what was asked for. Out: `SamplingParams` if all that decides a logprob is said, and settings for a
`Statement`. What is not said is the server's to decide (its generation_config.json), so it is not filled in here.
"""

from __future__ import annotations

from typing import Any

from lockstep.adapters.foreign.row import Row
from lockstep.core import SamplingParams
from lockstep.errors import InputError

DECIDING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
"""A server may take each from the model's generation_config.json; vLLM reads these five from there."""

PENALTIES = ("presence_penalty", "frequency_penalty")
"""The protocol says 0 for these where a request does not name them."""

REFUSED = ("bad_words", "logit_bias", "allowed_token_ids", "guided_json", "structured_outputs", "response_format")
"""They change logits too, in ways that are not read here."""


def settings(row: Row) -> dict[str, float]:
    """What is said of how tokens are drawn, by the names of `Statement.settings`."""
    names = (*DECIDING, *PENALTIES, "seed")
    return {name: row.tree[name] for name in names if row.number(name) is not None}


def params(row: Row) -> SamplingParams | None:
    """None unless every parameter that decides a logprob is said, and `SamplingParams` can hold it.

    Seed and limits decide no logprob: those that are not said are at the defaults of `SamplingParams`.
    """
    said = settings(row)
    if not set(DECIDING) <= said.keys() or any(row.tree.get(name) for name in REFUSED):
        return None
    limits = {name: row.integer(name) for name in ("max_tokens", "n", "seed")}
    given: dict[str, Any] = {name: value for name, value in limits.items() if value is not None and value > 0}
    given |= {name: said[name] for name in (*DECIDING, *PENALTIES) if name in said}
    given["top_k"] = max(row.integer("top_k") or 0, 0)  # -1 keeps all, as 0 does
    try:
        return SamplingParams(**given)
    except InputError:
        return None
