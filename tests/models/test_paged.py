"""All layers in one call over paged keys, against the same steps one by one."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from lockstep.errors import NumericsError
from lockstep.kernels.attention import KEY_BLOCK, plan_tiles, slots
from lockstep.kernels.linear import way_of
from lockstep.kernels.native.library import operators
from lockstep.models import decoder
from lockstep.models.architecture import Architecture
from lockstep.models.checkpoint import read_parameters
from lockstep.models.decoder import PagedKeys, hidden_states, paged_hidden_states
from lockstep.models.prepared import prepare
from lockstep.models.tiny import build_random, small

FAMILIES = ("llama", "qwen2", "qwen3")
STARTS, COUNTS = (0, 30, 15, 16), (37, 1, 5, 1)


def net(tmp_path, family: str, dtype: torch.dtype) -> tuple[Architecture, Mapping[str, Tensor]]:
    arch = small(family, vocab_size=61)
    directory = build_random(tmp_path / family, arch)
    params = read_parameters(directory, arch, dtype)
    generator = torch.Generator().manual_seed(4)
    for name, tensor in params.items():  # biases and gains that show
        if tensor.dim() == 1:
            tensor.add_(torch.randn(tensor.shape, generator=generator).to(dtype) / 4)
        assert tensor.isfinite().all(), name
    return arch, params


def keys(arch: Architecture, dtype: torch.dtype, tile: int = 0) -> PagedKeys:
    """Pages in no order, holding what others left."""
    needed = [-(-(a + n) // KEY_BLOCK) for a, n in zip(STARTS, COUNTS, strict=True)]
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(sum(needed) + 2, generator=generator).tolist()
    tables = [[order.pop() for _ in range(n)] for n in needed]
    shape = (arch.num_layers, 2, sum(needed) + 2, arch.num_kv_heads, KEY_BLOCK, arch.head_dim)
    store = torch.randn(shape, generator=generator).to(dtype)
    return PagedKeys(store, plan_tiles(STARTS, COUNTS, tables, tile), slots(STARTS, COUNTS, tables))


def rows() -> tuple[Tensor, Tensor]:
    positions = torch.cat([torch.arange(a, a + n) for a, n in zip(STARTS, COUNTS, strict=True)])
    return (7 * torch.arange(len(positions)) + 3) % 61, positions


@pytest.mark.skipif(operators() is None, reason="no C++ kernels")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_in_one_call_have_the_bits_of_their_steps(
    tmp_path, monkeypatch, family: str, dtype: torch.dtype
) -> None:
    arch, params = net(tmp_path, family, dtype)
    operands, (ids, positions) = prepare(params, arch, "float32").operands, rows()
    assert (decoder._parts(operands, arch) is not None) is way_of(64, 64, dtype, ids.device).native
    together, apart = keys(arch, dtype), keys(arch, dtype)
    found = paged_hidden_states(operands, arch, ids, positions, together)
    monkeypatch.setattr(decoder, "_parts", lambda *_: None)
    expected = paged_hidden_states(operands, arch, ids, positions, apart)
    assert torch.equal(found, expected)
    assert torch.equal(together.store, apart.store), "keys and values, and nothing else of the pages"
    assert found.isfinite().all() and found.std() > 0.1


def test_rows_do_not_depend_on_the_tile(tmp_path) -> None:
    arch, params = net(tmp_path, "llama", torch.bfloat16)
    operands, (ids, positions) = prepare(params, arch, "float32").operands, rows()
    first = paged_hidden_states(operands, arch, ids, positions, keys(arch, torch.bfloat16))
    assert torch.equal(first, paged_hidden_states(operands, arch, ids, positions, keys(arch, torch.bfloat16, tile=4)))


def test_a_weight_that_was_changed_behind_its_panels_is_refused(tmp_path) -> None:
    arch, params = net(tmp_path, "llama", torch.bfloat16)
    operands, (ids, positions) = prepare(params, arch, "float32").operands, rows()
    params["layers.1.down"].mul_(2.0)
    with pytest.raises(NumericsError, match="a packed copy must be that of its weight"):
        paged_hidden_states(operands, arch, ids, positions, keys(arch, torch.bfloat16))


@pytest.mark.skipif(operators() is None, reason="no C++ kernels")
def test_what_does_not_fit_is_an_error_and_no_wild_read(tmp_path) -> None:
    arch, params = net(tmp_path, "llama", torch.bfloat16)
    operands, (ids, positions) = prepare(params, arch, "float32").operands, rows()
    if decoder._parts(operands, arch) is None:
        pytest.skip("no product of our own on this machine")
    good = keys(arch, torch.bfloat16)
    far = PagedKeys(good.store, good.tiles, good.slots_T + 10_000)
    few = PagedKeys(good.store, good.tiles, good.slots_T[1:].contiguous())
    short = PagedKeys(good.store[:1], good.tiles, good.slots_T)
    for bad, error in ((far, IndexError), (few, RuntimeError), (short, RuntimeError)):
        with pytest.raises(error):
            paged_hidden_states(operands, arch, ids, positions, bad)
    swapped = {**operands, "layers.0.output": operands["layers.0.down"]}
    with pytest.raises(RuntimeError, match="output"):
        paged_hidden_states(swapped, arch, ids, positions, good)


def test_without_gradients_it_is_the_definition(tmp_path) -> None:
    arch, params = net(tmp_path, "qwen3", torch.bfloat16)
    params = {name: tensor.requires_grad_() for name, tensor in params.items()}
    ids, positions = rows()
    assert not paged_hidden_states(params, arch, ids, positions, keys(arch, torch.bfloat16)).requires_grad
    assert hidden_states(params, arch, ids, positions, lambda _, q, k, v: q).requires_grad
