"""The uniforms that decide a step's tokens, computed ahead: many at once cost far less than one by one.

In: completions that draw. Out: a uniform for each, keyed by what the token is, never by when or beside whom it comes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lockstep import numerics
from lockstep.engine.request import Completion

AHEAD = 32
"""Tokens of a completion whose uniforms are computed together. It moves none of them."""


def uniforms_of(completions: Sequence[Completion]) -> list[float]:
    """The uniform of the next token of each; 0 where the choice is greedy."""
    missing = [c for c in completions if not c.job.request.params.greedy and not _has_next(c)]
    if missing:
        counts = [min(AHEAD, len(c.tokens) - c.length) for c in missing]
        keys = np.repeat(np.stack([_key(c) for c in missing]), counts, axis=0)
        positions = np.concatenate([np.arange(c.length, c.length + n) for c, n in zip(missing, counts, strict=True)])
        values = np.split(numerics.uniforms(keys, positions), np.cumsum(counts)[:-1])
        for completion, piece in zip(missing, values, strict=True):
            completion.uniforms, completion.uniforms_from = piece.tolist(), completion.length
    return [0.0 if c.job.request.params.greedy else c.uniforms[c.length - c.uniforms_from] for c in completions]


def _has_next(completion: Completion) -> bool:
    return 0 <= completion.length - completion.uniforms_from < len(completion.uniforms)


def _key(completion: Completion) -> np.ndarray:
    if completion.key is None:
        request = completion.job.request
        completion.key = numerics.request_key(request.params.seed, request.id, completion.index)
    return completion.key
