"""Models that need no download: *tiny* for the sixty-second demo, and random ones of each family for tests.

In: a seed. Out: an HF directory that transformers loads too, with a tokenizer of one token a character.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from torch import Tensor

from lockstep.errors import ModelError, message
from lockstep.models.architecture import Architecture, Family
from lockstep.models.checkpoint import write_network
from lockstep.models.directory import whole_directory, write_json

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz +=?>.:-,"
VOCABULARY = (PAD, EOS, UNKNOWN, *ALPHABET)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)

TINY = Architecture(
    family="llama",
    vocab_size=len(VOCABULARY),
    hidden_size=64,
    intermediate_size=256,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    rope_theta=10000.0,
    norm_eps=1e-5,
    max_context=256,
    tied=True,
)


def small(family: Family, **changes: Any) -> Architecture:
    """A small architecture of `family` in which no two sizes agree by chance; `changes` replace fields."""
    base = replace(TINY, family=family, hidden_size=72, intermediate_size=112, num_heads=6, rope_theta=5000.0)
    return replace(base, **{"head_dim": 24, "tied": family != "qwen2", **changes})


def build_tiny(directory: Path, seed: int = 0) -> None:
    """Write the *tiny* model, untrained and fit for training, into an existing directory."""
    _write(directory, initial_parameters(TINY, seed), TINY)


def build_random(directory: Path, arch: Architecture, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Write a random model of any architecture, whole or not at all; returns `directory`.

    Norms and biases are far from 1 and 0, so that a forward pass that forgets one of them is found out.
    """
    if arch.vocab_size < len(VOCABULARY):
        do = "Raise vocab_size"
        expected = f"at least {len(VOCABULARY)}, the size of the tokenizer"
        raise ModelError(
            message("architecture (vocab_size)", "too small", got=arch.vocab_size, expected=expected, do=do)
        )
    params = {name: tensor.to(dtype) for name, tensor in random_parameters(arch, seed).items()}
    with whole_directory(directory) as partial:
        _write(partial, params, arch)
    return directory


def initial_parameters(arch: Architecture, seed: int) -> dict[str, Tensor]:
    """fp32 parameters for training: norms 1, biases 0, matrices of variance 1/fan-in, less into the residual stream."""
    generator = torch.Generator().manual_seed(seed)
    damping = {"output": math.sqrt(2 * arch.num_layers), "down": math.sqrt(2 * arch.num_layers)}
    params = {}
    for name, shape in arch.parameter_shapes().items():
        kind = name.rsplit(".", 1)[-1]
        if len(shape) == 1:
            params[name] = torch.zeros(shape) if kind == "qkv_bias" else torch.ones(shape)
        else:
            scale = math.sqrt(shape[-1]) * damping.get(kind, 1.0)
            params[name] = torch.randn(shape, generator=generator) / scale
    return params


def random_parameters(arch: Architecture, seed: int) -> dict[str, Tensor]:
    """fp32 parameters for tests: everything random, logits of a spread near 1."""
    generator = torch.Generator().manual_seed(seed)
    params = {}
    for name, shape in arch.parameter_shapes().items():
        draw = torch.randn(shape, generator=generator)
        if len(shape) == 2:
            params[name] = draw / math.sqrt(shape[-1])
        else:
            params[name] = 0.3 * draw if name.endswith("qkv_bias") else 1.0 + 0.2 * draw
    return params


def _write(directory: Path, params: dict[str, Tensor], arch: Architecture) -> None:
    ids = {"eos_token_id": VOCABULARY.index(EOS), "pad_token_id": VOCABULARY.index(PAD)}
    write_network(directory, params, arch, ids)
    write_json(directory / "generation_config.json", ids)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": arch.max_context,
        "clean_up_tokenization_spaces": False,
        "eos_token": EOS,
        "pad_token": PAD,
        "unk_token": UNKNOWN,
        "chat_template": CHAT_TEMPLATE,
    }
    write_json(directory / "tokenizer_config.json", settings)
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    (directory / "tokenizer.json").write_text(_characters().to_str(pretty=True), encoding="utf-8")


def _characters() -> tokenizers.Tokenizer:
    """One token a character, capitals read as small letters; a character outside the alphabet is `<unk>`."""
    ids = {token: i for i, token in enumerate(VOCABULARY)}
    core = tokenizers.Tokenizer(models.WordLevel(vocab=ids, unk_token=UNKNOWN))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (PAD, EOS, UNKNOWN)])
    return core
