"""Refusals: every request that could never run, with the numbers a user needs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lockstep.config import EngineConfig
from lockstep.core import Request, SamplingParams
from lockstep.engine.limits import Limits
from lockstep.errors import ConfigError, InputError
from lockstep.models.tiny import TINY

LIMITS = Limits(vocab_size=50, context=64, max_completions=4, page_size=16, num_pages=6, page_bytes=2**28)


def request(prompt=(1, 2, 3), **params) -> Request:
    return Request("q7", prompt, SamplingParams(**params))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (request(()), ["prompt has tokens", "none"]),
        (request((1, 50)), ["vocabulary", "50", "0 to 49"]),
        (request((1, -1)), ["vocabulary", "-1"]),
        (request((1.5, 2.0)), ["token ids", "float64"]),
        (request(((1, 2), (3, 4))), ["flat sequence"]),
        (request(("a",)), ["flat sequence"]),
        (request((1,) * 64), ["64 tokens", "at most 63", "engine.max_context"]),
        (request(n=5), ["got 5", "at most 4", "engine.max_sequences"]),
        (request(stop=("a", "")), ["stop is a tuple", "empty string"]),
        (request(stop=(3,)), ["stop is a tuple"]),
        (request(stop_token_ids=(1, 50)), ["stop_token_ids", "50"]),
        (request(logit_bias=((1, 2.0), (50, 1.0))), ["logit_bias", "50", "0 to 49"]),
        (request(bad_words=((1, 2), (3, 51))), ["bad_words", "51", "0 to 49"]),
        (request(bad_words=tuple((i,) for i in range(50))), ["leave a token", "50 last tokens", "at most 49"]),
    ],
)
def test_refused(bad, words):
    with pytest.raises(InputError) as caught:
        LIMITS.check(bad)
    text = str(caught.value)
    assert text.startswith("request (q7): ")
    assert [word for word in words if word not in text] == []


def test_the_largest_request_that_fits_is_accepted():
    assert LIMITS.check(request((1,) * 63, max_tokens=1)) == 1
    assert LIMITS.check(request(n=4, max_tokens=14)) == 14
    assert LIMITS.check(request(np.array([0, 49]))) == 16  # type: ignore[arg-type]


def test_the_context_cuts_max_tokens():
    assert LIMITS.check(request((1,) * 60, max_tokens=16)) == 4


def test_settings_become_limits():
    config = EngineConfig(kv_cache_gb=0.0002, page_size=32, max_sequences=9, max_tokens_per_step=8)
    limits = Limits.of(TINY, config, torch.bfloat16)
    page = 2 * 2 * TINY.num_kv_heads * 32 * TINY.head_dim * 2
    assert limits == Limits(TINY.vocab_size, TINY.max_context, 8, 32, int(0.0002 * 2**30) // page, page)
    assert Limits.of(TINY, config, torch.float32).page_bytes == 2 * page


def test_no_more_pages_than_could_ever_be_held():
    config = EngineConfig(kv_cache_gb=100, max_sequences=2, max_context=40)
    assert Limits.of(TINY, config, torch.bfloat16).num_pages == 2 * 3  # 39 keys in pages of 16


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_context": 257}, ["engine.max_context", "257", "at most 256"]),
        ({"kv_cache_gb": 1e-7}, ["engine.kv_cache_gb", "1e-07 GB", "at least"]),
    ],
)
def test_settings_that_leave_nothing_are_refused(settings, words):
    with pytest.raises(ConfigError) as caught:
        Limits.of(TINY, EngineConfig(**settings), torch.bfloat16)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("num_pages", [1, 2, 3])
def test_what_is_refused_does_not_fit_and_what_is_accepted_does(num_pages):
    limits = replace(LIMITS, num_pages=num_pages)
    for n in range(1, 5):
        for max_tokens in range(1, 62):
            ask = request(n=n, max_tokens=max_tokens)
            keys = 3 + max_tokens - 1  # of one completion; the others may wait for their turn
            if keys <= 16 * num_pages:
                assert limits.check(ask) == max_tokens
            else:
                with pytest.raises(InputError, match=rf"got {-(-keys // 16)} pages.*at most {num_pages} pages"):
                    limits.check(ask)
