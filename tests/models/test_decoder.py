"""The one model definition against transformers, family by family; and its rows against their neighbours."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lockstep import models
from lockstep.kernels.attention import Packing, packed_attention
from lockstep.kernels.head import head_logits
from lockstep.models import decoder
from lockstep.models.architecture import Architecture, Llama3Scaling
from lockstep.models.checkpoint import read_parameters
from lockstep.models.prepared import head_weight
from lockstep.models.tiny import build_random, small

TOLERANCE = 2e-4
"""Largest difference of a logit to transformers in fp32, logits of order 10: other summation orders, no more."""

ARCHITECTURES = {
    "llama": small("llama", hidden_size=96),
    "llama untied": small("llama", hidden_size=96, tied=False),
    "llama3 rope": small("llama", hidden_size=96, rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 32)),
    "qwen2": small("qwen2", hidden_size=96),
    "qwen3": small("qwen3"),
}


def _logits(params: dict[str, Tensor], arch: Architecture, sequences: list[Tensor]) -> Tensor:
    packing = Packing.of([len(s) for s in sequences])
    scale = decoder.attention_scale(arch)
    positions = torch.cat([torch.arange(len(s)) for s in sequences])
    with torch.no_grad():
        hidden = decoder.hidden_states(
            params, arch, torch.cat(sequences), positions, lambda _, q, k, v: packed_attention(q, k, v, packing, scale)
        )
        return head_logits(hidden, head_weight(params, arch, "float32"))


def _random_ids(arch: Architecture, lengths: list[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(0, arch.vocab_size, (n,), generator=generator) for n in lengths]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_agree_with_transformers(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    arch = ARCHITECTURES[name]
    build_random(tmp_path / "model", arch, seed=3)
    oracle = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    params = read_parameters(tmp_path / "model", arch, torch.float32)
    sequences = _random_ids(arch, [1, 5, 33, 100])
    mine = _logits(params, arch, sequences).split([len(s) for s in sequences])
    for ids, logits in zip(sequences, mine, strict=True):
        with torch.no_grad():
            expected = oracle(ids[None]).logits[0]
        assert expected.abs().max() > 1.0, "logits large enough to mean something"
        assert (logits - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_packing_order_and_company_move_no_bit(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    arch = ARCHITECTURES[name]
    build_random(tmp_path / "model", arch, seed=3)
    params = read_parameters(tmp_path / "model", arch, dtype)
    sequences = _random_ids(arch, [17, 3, 40, 1, 23])
    together = _logits(params, arch, sequences).split([17, 3, 40, 1, 23])
    backwards = _logits(params, arch, sequences[::-1]).split([23, 1, 40, 3, 17])[::-1]
    for i, ids in enumerate(sequences):
        assert torch.equal(together[i], backwards[i])
        assert torch.equal(together[i], _logits(params, arch, [ids]))


@pytest.mark.model
def test_smollm2_agrees_with_transformers_and_continues_alike() -> None:
    transformers = pytest.importorskip("transformers")
    model = models.load("smollm2")
    params = read_parameters(model.path, model.arch, torch.float32)
    oracle = transformers.AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.float32)
    text = "The bits of a row do not depend on its neighbours, whatever the number of rows. " * 6
    ids = torch.tensor(model.tokenizer.encode(text))
    with torch.no_grad():
        expected = oracle(ids[None]).logits[0]
    mine = _logits(params, model.arch, [ids])
    assert (mine - expected).abs().max() < 5e-3  # logits up to 40 here, 30 layers
    assert torch.equal(mine.argmax(-1), expected.argmax(-1))
