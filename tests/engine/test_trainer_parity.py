"""Engine against trainer where logits are adjusted and prompts are scored: the same bits, whatever was asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lockstep.config import parse
from lockstep.core import Contract, Decision, Request, Rollout, SamplingParams
from lockstep.core import Path as TokenPath
from lockstep.errors import ContractError, InputError, NumericsError
from lockstep.trace.rollouts import RolloutRecord, read, write
from lockstep.train import Batch, Trainer

V = 61
ids = st.integers(0, V - 1)
prompts = st.lists(ids, min_size=1, max_size=30).map(tuple)
params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.6, 1.0]),
    top_k=st.sampled_from([0, 0, 9]),
    top_p=st.sampled_from([1.0, 0.8]),
    min_p=st.sampled_from([0.0, 0.01]),
    max_tokens=st.integers(1, 20),
    n=st.integers(1, 3),
    seed=st.integers(0, 9),
    ignore_eos=st.just(True),
    presence_penalty=st.sampled_from([0.0, 0.8, -0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.4]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.7]),
    logit_bias=st.dictionaries(ids, st.floats(-5, 5), max_size=4).map(lambda found: tuple(sorted(found.items()))),
    bad_words=st.lists(st.lists(ids, min_size=1, max_size=2).map(tuple), max_size=30).map(tuple),
    prompt_logprobs=st.booleans(),
)
FIXTURES = [HealthCheck.function_scoped_fixture]


def trainer_of(net: Any, **sections: Any) -> Trainer:
    return Trainer(net.model, net.params, parse({"engine": {"dtype": net.dtype}, **sections}))


def bits(values: np.ndarray) -> list[int]:
    return values.view(np.int32).tolist()


def require_equal(trainer: Trainer, rollouts: list[Rollout]) -> None:
    scored, prompts = trainer.score(rollouts), trainer.score_prompts(rollouts)
    for rollout, own, prompt in zip(rollouts, scored, prompts, strict=True):
        assert own.contract == rollout.sampler_logprobs.contract
        assert bits(own.values) == bits(rollout.sampler_logprobs.values)
        assert np.isfinite(own.values).all()
        assert (rollout.prompt_logprobs is not None) == rollout.params.prompt_logprobs
        if rollout.prompt_logprobs is not None:
            assert prompt.contract == rollout.prompt_logprobs.contract
            assert bits(prompt.values) == bits(rollout.prompt_logprobs.values)
            assert len(prompt) == len(rollout.prompt_ids) - 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@settings(max_examples=20, deadline=None, suppress_health_check=FIXTURES)
@given(
    asked=st.lists(st.tuples(prompts, params), min_size=1, max_size=5),
    budget=st.sampled_from([8, 11, 64]),
    microbatch=st.sampled_from([8, 40, 2048]),
    pages=st.sampled_from([4, 6, 1000]),
)
def test_whatever_is_adjusted_and_however_it_is_scheduled(
    network: Callable[..., Any],
    dtype: str,
    asked: list[tuple[tuple[int, ...], SamplingParams]],
    budget: int,
    microbatch: int,
    pages: int,
) -> None:
    """With 4 or 6 pages (one completion needs up to 4) sequences lose their keys in the middle and make them anew."""
    net = network("qwen3", dtype)
    requests = [Request(f"r{i}", prompt, p) for i, (prompt, p) in enumerate(asked)]
    memory = pages * net.engine().limits.page_bytes / 2**30
    rollouts = net.engine(max_tokens_per_step=budget, kv_cache_gb=memory).sample(requests)
    require_equal(trainer_of(net, train={"max_tokens_per_microbatch": microbatch}), rollouts)
    for rollout in rollouts:
        require_no_bad_word(rollout)


def require_no_bad_word(rollout: Rollout) -> None:
    sequence = [*rollout.prompt_ids.tolist(), *rollout.token_ids.tolist()]
    for word in rollout.params.bad_words:
        for end in range(len(rollout.prompt_ids) + 1, len(sequence) + 1):
            assert sequence[max(0, end - len(word)) : end] != list(word)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_prompts_longer_than_a_chunk_of_the_head(network: Callable[..., Any], family: str) -> None:
    net = network(family)
    prompt = tuple(np.random.default_rng(0).integers(0, V, 150).tolist())
    for p in (SamplingParams(temperature=0.7, prompt_logprobs=True), SamplingParams(temperature=0.0)):
        requests = [Request(f"r{i}", prompt[i:], replace(p, max_tokens=2, prompt_logprobs=True)) for i in range(3)]
        for settings_ in ({}, {"max_tokens_per_step": 33}):
            rollouts = net.engine(**settings_).sample(requests)
            require_equal(trainer_of(net), rollouts)
            modes = {r.prompt_logprobs.contract.mode for r in rollouts if r.prompt_logprobs is not None}
            assert modes == {"raw" if p.greedy else "processed"}


def test_a_prompt_of_one_token_has_nothing_to_score(llama: Any) -> None:
    (rollout,) = llama.engine().sample([Request("a", (5,), SamplingParams(max_tokens=2, prompt_logprobs=True))])
    assert rollout.prompt_logprobs is not None
    assert rollout.prompt_logprobs.values.shape == (0,)
    require_equal(trainer_of(llama), [rollout])


def test_a_step_that_is_run_again_gives_each_logprob_once(llama: Any) -> None:
    """Chunks of 8, 8, 8 and 6 tokens; the last one draws, and fails."""
    engine = llama.engine(max_tokens_per_step=8)
    engine.add(Request("again", tuple(range(3, 33)), SamplingParams(max_tokens=3, prompt_logprobs=True)))
    for _ in range(3):
        assert engine.step() == []
    weight = engine.weights.serving.params["norm"]
    saved = weight.clone()
    weight.fill_(float("nan"))
    with pytest.raises(NumericsError):
        engine.step()
    weight.copy_(saved)
    done: list[Rollout] = []
    while engine.has_work:
        done += engine.step()
    require_equal(trainer_of(llama), done)


def test_a_prompt_that_is_run_again_keeps_its_logprobs(llama: Any) -> None:
    """Two completions of a prompt of 2 pages grow to 4 pages each; only 5 are there."""
    memory = 5 * llama.engine().limits.page_bytes / 2**30
    p = SamplingParams(n=2, max_tokens=30, ignore_eos=True, prompt_logprobs=True)
    rollouts = llama.engine(kv_cache_gb=memory).sample([Request("a", tuple(range(3, 35)), p)])
    assert any((rollout.provenance.path == TokenPath.RECOMPUTE).any() for rollout in rollouts)
    require_equal(trainer_of(llama), rollouts)


def test_equal_prompts_after_one_another_are_scored_each(llama: Any) -> None:
    """The second one could read its keys from the cache, which has no logprobs."""
    engine, prompt = llama.engine(), tuple(range(3, 43))
    plain = Request("a", prompt, SamplingParams(max_tokens=2))
    scored = Request("b", prompt, SamplingParams(max_tokens=2, prompt_logprobs=True))
    for request in (plain, scored, replace(scored, id="c")):
        require_equal(trainer_of(llama), engine.sample([request]))


def test_adjustments_are_not_those_of_the_prompt(llama: Any) -> None:
    plain = SamplingParams(max_tokens=2, prompt_logprobs=True, temperature=0.8)
    changed = replace(plain, repetition_penalty=1.7, logit_bias=((7, 3.0),), top_k=4)
    prompt = tuple(range(3, 20))
    first, second = llama.engine().sample([Request("a", prompt, plain), Request("b", prompt, changed)])
    assert first.prompt_logprobs is not None and second.prompt_logprobs is not None
    assert bits(first.prompt_logprobs.values) == bits(second.prompt_logprobs.values)
    first.prompt_logprobs.contract.require(second.prompt_logprobs.contract)


def test_a_bad_word_of_several_tokens_is_never_completed(llama: Any) -> None:
    """Everything that greedy sampling wanted after a token is forbidden, one continuation after the other."""
    words: tuple[tuple[int, ...], ...] = ()
    drawn: list[Rollout] = []
    p = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    for _ in range(4):
        (rollout,) = llama.engine().sample([Request("a", (5, 6), replace(p, bad_words=words))])
        drawn.append(rollout)
        require_no_bad_word(rollout)
        assert rollout.sampler_logprobs.contract.mode == ("processed" if words else "raw")
        sequence = [6, *rollout.token_ids.tolist()]
        words += tuple(pairwise(sequence))
    require_equal(trainer_of(llama), drawn)


def test_a_step_on_adjusted_rollouts_is_on_policy(network: Callable[..., Any]) -> None:
    net = network("llama")
    trainer = trainer_of(net)
    p = SamplingParams(
        n=4, max_tokens=9, ignore_eos=True, repetition_penalty=1.2, presence_penalty=0.3, bad_words=((9,),)
    )
    rollouts = net.engine().sample([Request(f"r{i}", (5 + i, 6, 7), p) for i in range(2)])
    proposal = trainer.propose(Batch.of(rollouts, [1.0, -1.0] * 4))
    assert proposal.metrics["mean_abs_log_ratio_new_old"] == 0.0
    for own, rollout in zip(proposal.trainer_logprobs, rollouts, strict=True):
        assert bits(own.values) == bits(rollout.sampler_logprobs.values)
    taken = trainer.step(proposal, Decision("admit", proposal.id, "for the test"))
    assert 0.0 < taken.metrics["grad_norm"] < float("inf")


def test_a_file_keeps_all_that_a_score_needs(llama: Any, tmp_path: FilePath) -> None:
    """Integers for fractions, too: the file gives them back as floats."""
    p = SamplingParams(
        n=2, max_tokens=9, top_k=20, top_p=1, presence_penalty=1, repetition_penalty=1.2, prompt_logprobs=True,
        logit_bias=((4, 2), (9, -1.5)), bad_words=((8,), (3, 4)), ignore_eos=True,
    )  # fmt: skip
    rollouts = llama.engine().sample([Request("a", (5, 6, 7), p)])
    write(tmp_path / "r.parquet", [RolloutRecord(1, rollout, "") for rollout in rollouts])
    back = [record.rollout for record in read(tmp_path / "r.parquet")]
    assert [bits(r.sampler_logprobs.values) for r in back] == [bits(r.sampler_logprobs.values) for r in rollouts]
    assert [r.params for r in back] == [r.params for r in rollouts]
    require_equal(trainer_of(llama), back)
    Batch.of(back, [1.0, -1.0])


def test_parameters_that_do_not_say_what_the_contract_says_are_refused(llama: Any) -> None:
    p = SamplingParams(max_tokens=4, repetition_penalty=1.2)
    (rollout,) = llama.engine().sample([Request("a", (5, 6), p)])
    wrong = replace(rollout, params=replace(p, repetition_penalty=1.0))
    with pytest.raises(ContractError, match=r"rollout \(a/0\): .* got nothing, expected repetition_penalty=1\.2"):
        trainer_of(llama).score([wrong])
    with pytest.raises(ContractError, match="adjustments"):
        Contract.of(wrong.params, "float32", (0,)).require(rollout.sampler_logprobs.contract)


def test_another_adjustment_gives_other_bits(llama: Any) -> None:
    """The comparison can fail: the same tokens, scored under a slightly different penalty."""
    p = SamplingParams(max_tokens=20, ignore_eos=True, repetition_penalty=1.2)
    (rollout,) = llama.engine().sample([Request("a", (5, 6), p)])
    other = replace(p, repetition_penalty=1.21)
    logprobs = replace(rollout.sampler_logprobs, contract=Contract.of(other, "float32", (0,)))
    (scored,) = trainer_of(llama).score([replace(rollout, params=other, sampler_logprobs=logprobs)])
    assert bits(scored.values) != bits(rollout.sampler_logprobs.values)


@pytest.mark.parametrize("changes", [{"logit_bias": ((V, 1.0),)}, {"bad_words": ((V,),)}])
def test_tokens_outside_the_vocabulary_are_refused_at_the_door(llama: Any, changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"request \(a\): ids in .* must be in the vocabulary"):
        llama.engine().sample([Request("a", (5, 6), SamplingParams(**changes))])
