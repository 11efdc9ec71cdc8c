"""What a forward multiplies by is that of its weights, and is made anew exactly when these change."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.errors import NumericsError
from lockstep.kernels.attention import Packing, packed_attention
from lockstep.kernels.head import Targets, head_logits, target_logprobs
from lockstep.kernels.linear import Packed, pack
from lockstep.models import decoder
from lockstep.models.prepared import PRODUCTS, Kept, head_weight, prepare
from lockstep.models.tiny import random_parameters, small

ARCH = small("llama", vocab_size=61)
UNTIED = small("qwen2", vocab_size=61)


def _params(seed: int = 0, dtype: torch.dtype = torch.bfloat16, arch=ARCH) -> dict[str, torch.Tensor]:
    return {name: tensor.to(dtype) for name, tensor in random_parameters(arch, seed).items()}


def _logprobs(operands, head, arch) -> torch.Tensor:
    ids, packing = torch.arange(9), Packing.of([9])
    scale = decoder.attention_scale(arch)
    hidden = decoder.hidden_states(
        operands, arch, ids, ids, lambda _, q, k, v: packed_attention(q, k, v, packing, scale)
    )
    return target_logprobs(hidden, head, Targets(ids + 1, 0.7))[0]


@pytest.mark.parametrize("kernels", ["native", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("arch", [ARCH, UNTIED], ids=["tied", "untied"])
def test_the_layers_give_the_bits_of_plain_weights_and_their_gradients(arch, dtype, kernels, monkeypatch) -> None:
    monkeypatch.setenv("LOCKSTEP_KERNELS", kernels)
    params = {name: tensor.requires_grad_() for name, tensor in _params(0, dtype, arch).items()}
    prepared = prepare(params, arch, "float32")
    plain, packed = (_logprobs(operands, prepared.head, arch) for operands in (params, prepared.operands))
    assert torch.equal(plain, packed)
    slopes = [torch.autograd.grad(values.sum(), list(params.values()), allow_unused=True) for values in (plain, packed)]
    for name, one, other in zip(params, *slopes, strict=True):
        assert one is not None, name
        assert torch.equal(one, other), name


def test_what_is_packed() -> None:
    prepared = prepare(_params(), ARCH, "float32")
    packed = {name for name, operand in prepared.operands.items() if isinstance(operand, Packed)}
    assert packed == {f"layers.{i}.{part}" for i in range(ARCH.num_layers) for part in PRODUCTS}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_fp32_head_keeps_what_a_head_of_the_model_rounds_away(dtype: torch.dtype) -> None:
    params = _params(3, dtype, UNTIED)
    rows = torch.randn(5, UNTIED.hidden_size, generator=torch.Generator().manual_seed(1)).to(dtype)
    exact = rows.double() @ params["head"].double().T
    wide, narrow = (head_logits(rows, head_weight(params, UNTIED, kind)) for kind in ("float32", "model"))
    assert (wide - exact).abs().max() < 1e-4
    assert wide.dtype is narrow.dtype is torch.float32
    assert torch.equal(narrow, narrow.to(dtype).float())


@pytest.mark.parametrize("kind", ["float32", "model"])
def test_the_gradient_of_a_packed_head_reaches_the_parameter(kind) -> None:
    params = _params(3, torch.bfloat16, UNTIED)
    leaf = params["head"].requires_grad_()
    hidden = torch.randn(7, UNTIED.hidden_size, generator=torch.Generator().manual_seed(1)).bfloat16().requires_grad_()
    targets = Targets(torch.arange(7), 0.7)
    got = torch.autograd.grad(
        target_logprobs(hidden, head_weight(params, UNTIED, kind), targets)[0].sum(), (hidden, leaf)
    )
    h64, w64 = hidden.detach().double().requires_grad_(), leaf.detach().double().requires_grad_()
    logprobs = (h64 @ w64.T / 0.7).log_softmax(-1).gather(1, torch.arange(7)[:, None]).sum()
    for ours, exact in zip(got, torch.autograd.grad(logprobs, (h64, w64)), strict=True):
        assert ours.dtype is torch.bfloat16
        assert torch.allclose(ours.double(), exact, rtol=0.03, atol=0.03)


@settings(max_examples=40)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(["ask", "other", "same tensors"]),
            st.tuples(st.just("write"), st.sampled_from(["layers.0.qkv", "layers.1.down", "embedding"])),
            st.tuples(st.just("replace"), st.sampled_from(["layers.0.output", "layers.1.gate_up", "embedding"])),
        ),
        max_size=8,
    )
)
def test_kept_weights_are_never_stale_and_not_made_twice(actions) -> None:
    """Whatever is written to, replaced or asked for in between."""
    kept, params, others = Kept(ARCH, "float32"), _params(0), _params(1)
    last, fresh = None, True
    for action in actions:
        match action:
            case "ask":
                found = kept.of(params)
                assert (found is last) != fresh
                last, fresh = found, False
            case "other":
                assert torch.equal(kept.of(others).head.content, head_weight(others, ARCH, "float32").content)
                fresh = True
            case "same tensors":
                params = dict(params)
            case ("write", name):
                params[name].mul_(1.5)
                fresh = True
            case ("replace", name):
                params = {**params, name: params[name].clone()}
                fresh = True
        found = kept.of(params)
        assert (found is last) != fresh
        last, fresh = found, False
        assert found.current
        for name, operand in found.operands.items():
            if isinstance(operand, Packed):
                assert operand.weight_OI is params[name]
                assert torch.equal(operand.content, pack(params[name]).content)
            else:
                assert operand is params[name]
        assert torch.equal(found.head.content, head_weight(params, ARCH, "float32").content)


def test_a_forward_over_weights_that_changed_is_refused() -> None:
    params = _params()
    prepared = prepare(params, ARCH, "float32")
    params["layers.1.down"].add_(1.0)
    assert not prepared.current
    with pytest.raises(NumericsError, match="changed in place"):
        _logprobs(prepared.operands, prepared.head, ARCH)
