"""The trainer's forward: rows do not know their neighbours, and what does not fit the model is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lockstep.core import SamplingParams
from lockstep.errors import ContractError, InputError, ModelError
from lockstep.kernels.head import Targets
from lockstep.models.prepared import prepare
from lockstep.models.tiny import TINY, initial_parameters, small
from lockstep.train.batch import pack, sequences
from lockstep.train.forward import Forward

FORWARD = Forward(TINY, "float32", "float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("head", ["float32", "model"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_token_has_the_same_bits_in_any_packing(make, dtype, head, family):
    arch = small(family)
    forward = Forward(arch, dtype, head)
    params = {n: p.to(getattr(torch, dtype)) for n, p in initial_parameters(arch, 1).items()}
    draw = np.random.default_rng(0)
    prompts = [draw.integers(0, 40, 1 + 9 * i) for i in (0, 1, 2, 2, 2)]  # the last three share their rows
    pairs = sequences([make.rollout(prompts[i], draw.integers(0, 40, 1 + i)) for i in range(5)])

    def score(chosen):
        packed = pack(pairs, chosen)
        with torch.no_grad():
            logprobs, entropy = forward.logprobs(prepare(params, arch, head), packed, Targets(packed.targets_N, 1.0))
        both = zip(packed.split(logprobs.numpy()), packed.split(entropy.numpy()), strict=True)
        return {i: (a.tobytes(), b.tobytes()) for i, (a, b) in zip(chosen, both, strict=True)}

    together = score([0, 1, 2, 3, 4])
    assert score([4, 2, 0]) == {i: together[i] for i in (4, 2, 0)}
    for i in range(5):
        assert score([i]) == {i: together[i]}


def test_logprobs_are_those_of_a_distribution(make):
    """Scoring every token of the vocabulary after one prompt gives probabilities that sum to 1."""
    pairs = sequences([make.rollout((5, 6, 7), (token,)) for token in range(TINY.vocab_size)])
    packed = pack(pairs, range(TINY.vocab_size))
    with torch.no_grad():
        weights = prepare(initial_parameters(TINY, 0), TINY, "float32")
        logprobs, entropy = FORWARD.logprobs(weights, packed, Targets(packed.targets_N, 0.7))
    assert float(logprobs.exp().sum()) == pytest.approx(1.0, abs=1e-5)
    assert float(entropy[0]) == pytest.approx(float(-(logprobs.exp() * logprobs).sum()), abs=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p.pop("norm"), r"parameter \(norm\).*got nothing"),
        (lambda p: p.update(extra=torch.ones(1)), r"parameter \(extra\).*expected no such parameter"),
        (lambda p: p.update(norm=p["norm"].bfloat16()), r"parameter \(norm\).*bfloat16"),
        (lambda p: p.update(norm=p["norm"][:-1]), r"parameter \(norm\).*63"),
    ],
)
def test_parameters_of_another_network_are_refused(change, words):
    params = initial_parameters(TINY, 0)
    FORWARD.require_parameters(params)
    change(params)
    with pytest.raises(ModelError, match=words):
        FORWARD.require_parameters(params)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokens": (8, TINY.vocab_size)}, f"got 8 to {TINY.vocab_size}|got 5 to {TINY.vocab_size}"),
        ({"prompt": (-1, 2)}, "got -1 to"),
        ({"params": SamplingParams(logit_bias=((TINY.vocab_size, 1.0),))}, f"logit_bias.*got {TINY.vocab_size}"),
        ({"params": SamplingParams(bad_words=((3, TINY.vocab_size),))}, f"bad_words.*got {TINY.vocab_size}"),
        ({"prompt": (5,) * TINY.max_context}, f"got {TINY.max_context + 2} tokens"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(make, changes, words):
    with pytest.raises(InputError, match=rf"rollout \(r0\): .*({words})"):
        FORWARD.require_rollout(make.rollout(**changes))


def test_the_whole_context_may_be_used(make):
    FORWARD.require_rollout(make.rollout((5,) * (TINY.max_context - 2), (8, 9)))


def test_another_head_dtype_is_another_quantity(make):
    with pytest.raises(ContractError, match="got model, expected float32"):
        FORWARD.require_rollout(make.rollout(head="model"))


def test_parameters_that_adjust_otherwise_than_the_contract_are_refused(make):
    drawn = make.rollout(params=SamplingParams(presence_penalty=0.5))
    FORWARD.require_rollout(drawn)
    with pytest.raises(ContractError, match=r"rollout \(r0\): .* got nothing, expected presence_penalty=0\.5"):
        FORWARD.require_rollout(replace(drawn, params=SamplingParams()))
