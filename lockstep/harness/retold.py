"""Rollouts as a mistaken trainer takes them: other parameters, another prompt, tokens that were not drawn.

In: a rollout of the engine. Out: one that the trainer accepts and scores.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from lockstep.core import Contract, Logprobs, Rollout, Span


def of_version(rollout: Rollout, number: int) -> Rollout:
    """The rollout as if one version had drawn all of it."""
    origin, drawn = rollout.provenance, rollout.sampler_logprobs
    versions = np.full(len(rollout.token_ids), number, np.int32)
    return replace(
        rollout,
        provenance=replace(origin, weight_version=versions, spans=()),
        sampler_logprobs=replace(drawn, contract=replace(drawn.contract, weight_versions=(number,))),
    )


def with_fields(rollout: Rollout, **fields: Any) -> Rollout:
    """The rollout as if other sampling fields had been asked for; a support that these do not cut is forgotten."""
    params = replace(rollout.params, **fields)
    drawn = rollout.sampler_logprobs
    contract = Contract.of(params, drawn.contract.head_dtype, drawn.contract.weight_versions)
    return replace(
        rollout,
        params=params,
        support=rollout.support if params.truncates else None,
        sampler_logprobs=replace(drawn, contract=contract),
    )


def with_prompt(rollout: Rollout, prompt_ids: np.ndarray) -> Rollout:
    """The rollout after another prompt, all of it at the weights of its last token."""
    plain = of_version(rollout, int(rollout.provenance.weight_version[-1]))
    return replace(plain, prompt_ids=np.asarray(prompt_ids, np.int32))


def with_tokens(rollout: Rollout, token_ids: np.ndarray, kept: np.ndarray) -> Rollout:
    """Other tokens. `kept` int64: for each of them the drawn token whose logprob and provenance it is given.

    Support is not carried over: only for requests that truncate nothing.
    """
    assert rollout.support is None, "tokens with a support cannot be exchanged"
    origin, drawn = rollout.provenance, rollout.sampler_logprobs
    versions = origin.weight_version[kept]
    numbers = tuple(dict.fromkeys(versions.tolist()))
    longer = len(token_ids) - len(rollout.token_ids)
    moved = (_moved(span, len(rollout.prompt_ids) + len(rollout.token_ids), longer) for span in origin.spans)
    spans = tuple(span for span in moved if span.start < span.end)
    return replace(
        rollout,
        token_ids=np.asarray(token_ids, np.int32),
        sampler_logprobs=Logprobs(drawn.values[kept], replace(drawn.contract, weight_versions=numbers)),
        provenance=replace(
            origin,
            weight_version=versions,
            path=origin.path[kept],
            cached=origin.cached[kept],
            spans=spans,
        ),
    )


def _moved(span: Span, end: int, longer: int) -> Span:
    """A span that ran to the end does so still."""
    return replace(span, end=span.end + longer) if span.end >= end - 1 else span
