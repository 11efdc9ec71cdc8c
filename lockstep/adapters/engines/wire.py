"""What goes to vLLM and what comes back, in process or over HTTP: sampling fields, series with holes.

In: `SamplingParams`, lists of values. Out: fields by vLLM's names, float32 arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lockstep.core import SamplingParams
from lockstep.parity.side import CannotAsk


def drawn_fields(params: SamplingParams) -> dict[str, Any]:
    """vLLM's fields, every one sent, so that none is filled in from elsewhere.

    Raises `CannotAsk` for stop strings and for forbidden sequences of ids, which vLLM takes as text or not at all.
    """
    if params.stop or params.bad_words:
        raise CannotAsk(f"sampling ({'stop' if params.stop else 'bad_words'}): it cannot be sent as it was asked for")
    fields: dict[str, Any] = {
        name: getattr(params, name)
        for name in (
            "temperature", "top_k", "top_p", "min_p", "max_tokens", "n", "seed", "presence_penalty",
            "frequency_penalty", "repetition_penalty", "ignore_eos",
        )
    }  # fmt: skip
    if params.stop_token_ids:
        fields["stop_token_ids"] = list(params.stop_token_ids)
    if params.logit_bias:
        fields["logit_bias"] = {str(token): bias for token, bias in params.logit_bias}
    return fields


def series_of(values: Sequence[float | None]) -> np.ndarray:
    """float32; NaN where there is no value."""
    return np.array([np.nan if value is None else value for value in values], np.float32)
