"""CAC: keys and values that should not have been read.

In: a laboratory. Out: the same, broken. As with the weights, the trainer takes all tokens for those of one version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lockstep.core import SamplingParams, Span
from lockstep.engine import scheduler
from lockstep.engine.cache import PagePool, page_key
from lockstep.harness.faults.weights import believe_newest
from lockstep.harness.injection import Injection
from lockstep.harness.laboratory import Laboratory
from lockstep.harness.retold import of_version
from lockstep.parity.observation import Sample, Statement
from lockstep.train import SpanScorer
from lockstep.weight_update import UpdatePolicy

KEPT = UpdatePolicy("keep", "keep")


def surviving_prefix(laboratory: Laboratory) -> None:
    """CAC01: the prefix cache goes on giving out pages that older weights wrote."""
    laboratory.policy = KEPT
    believe_newest(laboratory)


def unlabelled_keys(laboratory: Laboratory) -> None:
    """CAC02: who is in flight goes on over its old keys; tokens name the weights that drew them, nothing names keys."""

    def score(samples: list[Sample]) -> list[Sample]:
        """What a trainer does that knows versions of tokens only: each token at its own, over keys of the same."""
        scored = []
        for sample, rollout in zip(samples, laboratory.drawn, strict=True):
            versions = rollout.provenance.weight_version
            series = np.empty(len(versions), np.float32)
            for number in np.unique(versions).tolist():
                scorer = SpanScorer(laboratory.trainer.forward, laboratory.history, 512)
                at_once = scorer.score([of_version(rollout, number)])[0].values
                series[versions == number] = at_once[versions == number]
            scored.append(replace(sample, trainer=series, spans=()))
        return scored

    laboratory.hooks.scores.append(score)


def refused_reset(laboratory: Laboratory) -> None:
    """CAC03: the cache is to be reset at every update; while blocks are held that is refused, and answered 200 OK."""
    laboratory.policy = KEPT
    believe_newest(laboratory)

    def acknowledge(said: Statement) -> Statement:
        settings = {**said.settings, "cache_salt": "none", "prefix_cache_reset": "at every update, acknowledged"}
        return replace(said, settings=settings)

    laboratory.patch(laboratory, "reset", lambda: None)  # a block is always held: that of a prompt under decoding
    laboratory.hooks.statement.append(acknowledge)


def colliding_keys(laboratory: Laboratory) -> None:
    """CAC04: the key of a page is made from its first token and its parent, so that other prompts' pages are found."""

    def short(parent: bytes, tokens: np.ndarray) -> bytes:
        return page_key(parent, np.ascontiguousarray(tokens[:1]))

    laboratory.patch(scheduler, "page_key", short)
    believe_newest(laboratory)


def freed_early(laboratory: Laboratory) -> None:
    """CAC05: whoever finds a cached page forgets to take it off the list of those that may be given away.

    When pages run short it is given away, and written over, while it is still read.
    """

    def hold(pool: PagePool, page: int) -> int:
        pool._references[page] += 1
        return page

    def release(pool: PagePool, page: int) -> None:
        if pool._references[page] > 0:
            released_by(pool, page)

    def register(pool: PagePool, page: int, key: bytes, spans: tuple[Span, ...]) -> None:
        if pool._references[page] > 0:
            registered_by(pool, page, key, spans)

    released_by = laboratory.patch(PagePool, "release", release)
    registered_by = laboratory.patch(PagePool, "register", register)
    laboratory.patch(PagePool, "hold", hold)


_CROWDED = {
    "pages": 11,
    "max_sequences": 4,
    "prompts": 10,
    "prefix": 40,
    "params": SamplingParams(max_tokens=12, n=4, ignore_eos=True),
}

INJECTIONS: Sequence[Injection] = (
    Injection("CAC01", surviving_prefix, {"in_flight": False}),
    Injection("CAC02", unlabelled_keys, {"in_flight": True}),
    Injection("CAC03", refused_reset, {"in_flight": False}),
    Injection("CAC04", colliding_keys, {"in_flight": False, "prefix": 30, "tail": 24}),
    Injection("CAC05", freed_early, _CROWDED),
)
