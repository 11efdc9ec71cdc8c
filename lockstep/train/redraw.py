"""Draws every token of recorded rollouts again, from the weights, spans and random numbers of the time.

In: rollouts and a `SpanScorer` over the weights they were run at. Out: what the sampler would draw, token by token, and
where that first differs from what was recorded.

Every row is run over the recorded tokens before it. So if each token drawn again is the recorded one, then by induction
running the whole rollout again gives the same rollout.

Letters: N rows that decide a token, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from lockstep import numerics
from lockstep.core import Path, Rollout, Support
from lockstep.errors import InputError, message
from lockstep.kernels.head import CHUNK, head_logits
from lockstep.kernels.sampling import Sampled, sample
from lockstep.train.replay import Decided, SpanScorer
from lockstep.train.targets import histories_of, join_supports


@dataclass(frozen=True, slots=True, eq=False)
class Redrawn:
    """Token ids int32 [T] and logprobs float32 [T] of one rollout, drawn again; the support where it is truncated."""

    token_ids: np.ndarray
    logprobs: np.ndarray
    support: Support | None


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first token, in the order of the rollouts and then of the tokens, that was not drawn again as recorded.

    `got` was drawn now, `expected` is recorded: a token id, a logprob with its bits, or the ids that were kept.
    `index` counts the tokens of the completion, `position` those of the whole sequence.
    """

    rollout_id: str
    index: int
    position: int
    what: Literal["token", "logprob", "support"]
    path: str
    version: int
    got: str
    expected: str

    def __str__(self) -> str:
        return message(
            f"{self.what} (rollout {self.rollout_id}, token {self.index})",
            "running it again must give the same bits",
            got=self.got,
            expected=self.expected,
            do=f"Look at position {self.position}, weight version {self.version}, path {self.path}",
        )


def redraw(scorer: SpanScorer, rollouts: Sequence[Rollout]) -> list[Redrawn]:
    """Draw every token again, with the sampler's own kernel, parameters and uniforms.

    Raises `InputError` for an id that is not ``request/sample``, `NumericsError` for logits that leave no token, and
    what `SpanScorer.score` raises.
    """
    keys = [_key(rollout) for rollout in rollouts]
    tokens = [np.empty(len(rollout.token_ids), np.int32) for rollout in rollouts]
    logprobs = [np.empty(len(rollout.token_ids), np.float32) for rollout in rollouts]
    kept: list[list[np.ndarray | None]] = [[None] * len(rollout.token_ids) for rollout in rollouts]
    with torch.no_grad():
        for decided in scorer.decided(rollouts):
            places = [(index, token) for index, part in decided.parts for token in part]
            for at in range(0, len(places), CHUNK):
                chunk = places[at : at + CHUNK]
                drawn = _draw(decided, at, chunk, rollouts, keys)
                for row, (index, token) in enumerate(chunk):
                    tokens[index][token] = drawn.token_ids[row]
                    logprobs[index][token] = drawn.logprobs[row]
                    kept[index][token] = drawn.supports[row]
    return [Redrawn(ids, values, _support(ragged)) for ids, values, ragged in zip(tokens, logprobs, kept, strict=True)]


def first_divergence(rollouts: Sequence[Rollout], redrawn: Sequence[Redrawn]) -> Divergence | None:
    """The first token that was not drawn again in every bit; None if all were. A token comes before its logprob."""
    for rollout, again in zip(rollouts, redrawn, strict=True):
        unequal = again.token_ids != rollout.token_ids
        unequal |= again.logprobs.view(np.int32) != rollout.sampler_logprobs.values.view(np.int32)
        unequal |= np.array([_kept(again.support, t) != _kept(rollout.support, t) for t in range(len(unequal))])
        if unequal.any():
            return _divergence(rollout, again, int(np.argmax(unequal)))
    return None


def _draw(
    decided: Decided,
    at: int,
    places: Sequence[tuple[int, int]],
    rollouts: Sequence[Rollout],
    keys: Sequence[np.ndarray],
) -> Sampled:
    """Draw from the hidden rows `at`.. of some (rollout, token)."""
    owners = [rollouts[index] for index, _ in places]
    positions = np.array([len(owner.prompt_ids) + token for owner, (_, token) in zip(owners, places, strict=True)])
    uniforms = numerics.uniforms(np.stack([keys[index] for index, _ in places]), positions).tolist()
    histories = [
        history
        for owner, (_, token) in zip(owners, places, strict=True)
        for history in histories_of(owner, range(token, token + 1))
    ]
    logits_NV = head_logits(decided.hidden_NE[at : at + len(places)], decided.head)
    return sample(logits_NV, [owner.params for owner in owners], uniforms, histories)


def _key(rollout: Rollout) -> np.ndarray:
    request, slash, index = rollout.id.rpartition("/")
    if not slash or not index.isdecimal():
        do = "Keep the id that the engine gave it: it is the key of its random numbers"
        raise InputError(
            message(f"rollout ({rollout.id})", "its id names request and sample", got=repr(rollout.id),
                    expected="request/0, with the index of the sample", do=do)
        )  # fmt: skip
    return numerics.request_key(rollout.params.seed, request, int(index))


def _support(kept: Sequence[np.ndarray | None]) -> Support | None:
    one_each = [
        Support(ids.astype(np.int32, copy=False), np.array([0, len(ids)], np.int64)) for ids in kept if ids is not None
    ]
    assert len(one_each) in (0, len(kept)), "one rollout has one set of sampling parameters"
    return join_supports(one_each)


def _kept(support: Support | None, token: int) -> list[int] | None:
    return None if support is None else support.ids[support.offsets[token] : support.offsets[token + 1]].tolist()


def _divergence(rollout: Rollout, again: Redrawn, index: int) -> Divergence:
    ours, theirs = again.logprobs[index : index + 1], rollout.sampler_logprobs.values[index : index + 1]
    if again.token_ids[index] != rollout.token_ids[index]:
        what, got, expected = "token", f"id {again.token_ids[index]}", f"id {rollout.token_ids[index]}"
    elif ours.view(np.int32) != theirs.view(np.int32):
        what, got, expected = "logprob", numerics.exact(ours), numerics.exact(theirs)
    else:
        what = "support"
        got, expected = str(_kept(again.support, index)), str(_kept(rollout.support, index))
    path = int(rollout.provenance.path[index])
    return Divergence(
        rollout.id, index, len(rollout.prompt_ids) + index, what, Path.label(path),
        int(rollout.provenance.weight_version[index]), got, expected,
    )  # fmt: skip
