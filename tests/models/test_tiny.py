"""Models made on the spot: deterministic, loadable, and random enough for tests to bite."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from lockstep.errors import ModelError
from lockstep.models import load
from lockstep.models.architecture import FAMILIES
from lockstep.models.checkpoint import digest, read_parameters
from lockstep.models.tiny import (
    ALPHABET,
    TINY,
    VOCABULARY,
    build_random,
    build_tiny,
    initial_parameters,
    random_parameters,
    small,
)  # fmt: skip


@given(st.sampled_from(FAMILIES), st.integers(0, 50))
@settings(max_examples=10)
def test_a_seed_decides_every_bit(family, seed):
    for make in (initial_parameters, random_parameters):
        arch = small(family)
        assert digest(make(arch, seed)) == digest(make(arch, seed))
        assert digest(make(arch, seed)) != digest(make(arch, seed + 1))


def test_the_global_generator_plays_no_part():
    state = torch.random.get_rng_state()
    first = digest(random_parameters(TINY, 0))
    torch.rand(3)
    assert digest(random_parameters(TINY, 0)) == first
    torch.random.set_rng_state(state)
    random_parameters(TINY, 0)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_have_the_architectures_names_and_shapes(family):
    arch = small(family)
    for make in (initial_parameters, random_parameters):
        params = make(arch, 0)
        assert {name: tuple(tensor.shape) for name, tensor in params.items()} == arch.parameter_shapes()
        assert list(params) == list(arch.parameter_shapes())
        assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in params.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_random_norms_and_biases_bite(family):
    for name, tensor in random_parameters(small(family), 0).items():
        if name.endswith("norm"):
            assert tensor.std() > 0.1
            assert (tensor > 0).all()
        if name.endswith("bias"):
            assert tensor.std() > 0.2


def test_initial_parameters_are_fit_for_training():
    params = initial_parameters(TINY, 0)
    for name, tensor in params.items():
        if tensor.dim() == 1:
            assert (tensor == 1).all()
        else:
            expected = 1 / math.sqrt(tensor.shape[1])
            if name.endswith(("output", "down")):
                expected /= 2  # sqrt(2 * 2 layers)
            assert tensor.std() == pytest.approx(expected, rel=0.05)
    assert not initial_parameters(small("qwen2"), 0)["layers.0.qkv_bias"].any()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_built_models_load_here_and_in_transformers(family, dtype, tmp_path):
    arch = small(family, num_layers=1, vocab_size=64)
    path = build_random(tmp_path / "model", arch, seed=3, dtype=dtype)
    model = load(str(path))
    assert model.arch == arch
    assert digest(read_parameters(path, arch, dtype)) == digest(
        {name: tensor.to(dtype) for name, tensor in random_parameters(arch, 3).items()}
    )
    theirs = AutoModelForCausalLM.from_pretrained(path)
    assert theirs.dtype == dtype
    with torch.no_grad():
        logits = theirs(torch.tensor([model.tokenizer.encode("1 + 2 =")])).logits
    assert logits.shape == (1, 7, 64)
    assert 0.1 < logits.float().std() < 10


def test_no_two_sizes_of_small_models_agree():
    arch = small("llama")
    sizes = [arch.vocab_size, arch.hidden_size, arch.intermediate_size, arch.num_heads * arch.head_dim, arch.head_dim]
    assert len(set(sizes)) == len(sizes)
    assert small("qwen2").tied is False
    assert small("qwen3", tied=False, num_layers=5).num_layers == 5


def test_the_tiny_model(tmp_path):
    build_tiny(tmp_path)
    model = load(str(tmp_path))
    assert model.arch == TINY
    assert digest(read_parameters(tmp_path, TINY, torch.float32)) == digest(initial_parameters(TINY, 0))
    assert model.tokenizer.encode("abc>") == [VOCABULARY.index(character) for character in "abc>"]
    assert set("0123456789abcdefghijklmnopqrstuvwxyz +=?>.:") <= set(ALPHABET)
    assert len(set(VOCABULARY)) == len(VOCABULARY) == TINY.vocab_size


def test_a_vocabulary_too_small_for_the_tokenizer(tmp_path):
    with pytest.raises(ModelError, match=r"vocab_size\): too small - got 40, expected at least 48"):
        build_random(tmp_path / "model", small("llama", vocab_size=40))
    assert not list(tmp_path.iterdir())
