"""Logprobs of prompts: those of a distribution, the same in any packing, each prompt once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.core import Contract, SamplingParams
from lockstep.errors import ContractError, InputError
from lockstep.models.prepared import prepare
from lockstep.models.tiny import TINY, initial_parameters
from lockstep.train.forward import Forward
from lockstep.train.prompts import score_prompts

FORWARD = Forward(TINY, "float32", "float32")
WEIGHTS = prepare(initial_parameters(TINY, 0), TINY, "float32")

prompts = st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=12), min_size=1, max_size=6)


def bits(scored):
    return [one.values.view(np.int32).tolist() for one in scored]


@settings(max_examples=25, deadline=None)
@given(prompts, st.sampled_from([8, 20, 500]), st.lists(st.sampled_from([0.0, 0.7, 1.0]), min_size=6, max_size=6))
def test_a_prompt_is_scored_alone_as_in_company(make, found, budget, temperatures):
    rollouts = [
        make.rollout(prompt, name=f"r{i}", params=SamplingParams(temperature=temperatures[i]))
        for i, prompt in enumerate(found)
    ]
    together = score_prompts(FORWARD, WEIGHTS, 3, rollouts, budget)
    for rollout, scored in zip(rollouts, together, strict=True):
        assert bits(score_prompts(FORWARD, WEIGHTS, 3, [rollout], 500)) == bits([scored])
        assert scored.values.shape == (len(rollout.prompt_ids) - 1,)
        versions = (3,) if len(rollout.prompt_ids) > 1 else ()
        assert scored.contract == Contract.of_prompt(rollout.params, "float32", versions)


def test_they_are_what_the_completion_would_have(make):
    """The prompt's own tokens, given as a completion of its first one."""
    subject = make.trainer()
    (whole,) = subject.score_prompts([make.rollout((5, 6, 7, 8), params=SamplingParams(temperature=0.5))])
    (drawn,) = subject.score([make.rollout((5,), (6, 7, 8), params=SamplingParams(temperature=0.5))])
    assert bits([whole]) == bits([drawn])
    assert whole.contract == drawn.contract


def test_neither_adjusted_nor_truncated(make):
    plain = make.rollout((5, 6, 7, 8))
    params = SamplingParams(top_k=1, repetition_penalty=1.5, bad_words=((6,),))
    changed = make.rollout((5, 6, 7, 8), params=params, kept=[[8], [9]])
    first, second = score_prompts(FORWARD, WEIGHTS, 0, [plain, changed], 500)
    assert bits([first]) == bits([second])
    first.contract.require(second.contract)


def test_no_logprobs_are_those_of_no_weights(make):
    """What an engine says of a prompt of one token."""
    one, two = score_prompts(FORWARD, WEIGHTS, 3, [make.rollout((5,)), make.rollout((5, 6))], 500)
    assert (len(one), one.contract.weight_versions) == (0, ())
    assert (len(two), two.contract.weight_versions) == (1, (3,))


def test_equal_prompts_are_run_once(make, monkeypatch):
    rows = []
    run = Forward.logprobs

    def counted(self, params, packed, targets):
        rows.append(packed.ids_T.shape[0])
        return run(self, params, packed, targets)

    monkeypatch.setattr(Forward, "logprobs", counted)
    rollouts = [make.rollout((5, 6, 7, 8), (i, 9), name=f"r{i}") for i in range(4)]
    scored = score_prompts(FORWARD, WEIGHTS, 0, rollouts, 500)
    assert rows == [3], "the last token predicts nothing"
    assert len({tuple(one.values.tolist()) for one in scored}) == 1


def test_what_does_not_fit_is_refused(make):
    with pytest.raises(InputError, match="token ids must be in the vocabulary"):
        score_prompts(FORWARD, WEIGHTS, 0, [make.rollout((5, TINY.vocab_size))], 500)
    with pytest.raises(ContractError, match="one head on both sides"):
        score_prompts(FORWARD, WEIGHTS, 0, [make.rollout(head="model")], 500)


def test_no_rollouts_no_logprobs():
    assert score_prompts(FORWARD, WEIGHTS, 0, [], 500) == []


def test_the_probabilities_of_a_second_token_sum_to_one(make):
    rollouts = [make.rollout((5, token), name=f"r{token}") for token in range(TINY.vocab_size)]
    scored = score_prompts(FORWARD, WEIGHTS, 0, rollouts, 500)
    total = torch.tensor([float(one.values[0]) for one in scored], dtype=torch.float64).exp().sum()
    assert float(total) == pytest.approx(1.0, abs=1e-5)
