from __future__ import annotations

from dataclasses import replace

import pytest

from bench.referee import Referee, Sanity, Unfair, require_alike
from lockstep.config import EngineConfig, RunConfig
from lockstep.core import Request, SamplingParams
from lockstep.engine import Engine

PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
PARAMS = SamplingParams(temperature=0.8, max_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module")
def referee(tiny):
    return Referee(tiny, RunConfig(engine=EngineConfig(kv_cache_gb=0.01)))


@pytest.fixture(scope="module")
def answer(tiny):
    """What Lockstep's own engine draws."""
    engine = Engine.load(str(tiny.path), kv_cache_gb=0.01)
    rollouts = engine.sample([Request(str(i), tuple(prompt), PARAMS) for i, prompt in enumerate(PROMPTS)])
    return {
        "tokens": [rollout.token_ids.tolist() for rollout in rollouts],
        "logprobs": [rollout.sampler_logprobs.values.tolist() for rollout in rollouts],
    }


def test_our_own_engine_is_off_by_nothing(referee, answer):
    found = referee.judge("ours", PROMPTS, answer, PARAMS)
    assert (found.completions, found.tokens) == (3, 18)
    assert found.mean_difference == found.largest_difference == 0.0
    assert found.mean_logprob == pytest.approx(sum(map(sum, answer["logprobs"])) / 18)
    assert found.distinct_tokens == len({token for one in answer["tokens"] for token in one})
    assert found.standard_error > 0


def test_tokens_alone_can_be_judged(referee, answer):
    found = referee.judge("bare", PROMPTS, {"tokens": answer["tokens"]}, PARAMS)
    assert found.mean_difference is None and found.mean_logprob < 0


@pytest.mark.parametrize(
    "less",
    [
        lambda tokens: tokens[:-1],
        lambda tokens: [tokens[0][:-1], *tokens[1:]],
        lambda tokens: [[*tokens[0], 5], *tokens[1:]],
        lambda tokens: [],
    ],
)
def test_who_draws_less_or_more_is_found_out(less, referee, answer):
    with pytest.raises(Unfair, match=r"contestant \(lazy\).*draws what was asked"):
        referee.judge("lazy", PROMPTS, {"tokens": less(answer["tokens"])}, PARAMS)


@pytest.mark.parametrize("wrong", [lambda value: value + 0.2, lambda value: value / 0.8, lambda value: float("nan")])
def test_logprobs_of_something_else_are_found_out(wrong, referee, answer):
    logprobs = [[wrong(value) for value in one] for one in answer["logprobs"]]
    with pytest.raises(Unfair, match="logprobs are those of what was asked"):
        referee.judge("other", PROMPTS, {**answer, "logprobs": logprobs}, PARAMS)


def test_a_little_rounding_is_fair(referee, answer):
    logprobs = [[value + 0.03 for value in one] for one in answer["logprobs"]]
    found = referee.judge("bf16", PROMPTS, {**answer, "logprobs": logprobs}, PARAMS)
    assert found.mean_difference == pytest.approx(0.03, abs=1e-6)


OURS = Sanity(64, 8192, 3000, -1.5, 0.02, 0.0, 0.0)


def test_likelier_tokens_are_found_out():
    require_alike({"ours": OURS, "theirs": replace(OURS, mean_logprob=-1.6)})
    with pytest.raises(Unfair, match=r"contestant \(greedy\).*one distribution"):
        require_alike({"ours": OURS, "theirs": OURS, "greedy": replace(OURS, mean_logprob=-0.4)})
    with pytest.raises(Unfair, match="hot"):
        require_alike({"ours": OURS, "hot": replace(OURS, mean_logprob=-2.4)})


def test_what_chance_allows_grows_with_the_error():
    wide = replace(OURS, standard_error=0.3)
    require_alike({"ours": wide, "theirs": replace(wide, mean_logprob=-2.5)})
