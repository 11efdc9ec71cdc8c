"""Target logprobs: values, gradients, chunk and support independence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lockstep.core import SamplingParams, Support
from lockstep.kernels import head
from lockstep.kernels.adjust import History
from lockstep.kernels.head import Targets, head_logits, target_logprobs


def _case(rows: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, 24, generator=g).to(dtype)
    weight = torch.randn(50, 24, generator=g).to(dtype).float()
    return hidden, weight, torch.randint(0, 50, (rows,), generator=g)


def _kept(rows: int, ids: Tensor) -> tuple[Support, Tensor]:
    """Every row keeps its target and multiples of (row + 2)."""
    mask = torch.zeros(rows, 50, dtype=torch.bool)
    for i in range(rows):
        mask[i, :: i % 5 + 2] = True
        mask[i, ids[i]] = True
    kept = [m.nonzero()[:, 0].numpy().astype(np.int32) for m in mask]
    return Support(np.concatenate(kept), np.cumsum([0, *map(len, kept)])), mask


def _histories(rows: int, ids: Tensor) -> tuple[list[History | None], Tensor]:
    """Histories in which the target has occurred and is not banned; every third row has none. And which rows adjust."""
    found: list[History | None] = []
    draw = np.random.default_rng(rows)
    for i in range(rows):
        target = int(ids[i])
        banned = tuple((token,) for token in draw.integers(0, 50, 3).tolist() if token != target)
        bias = tuple((token, 1.5) for token in sorted({target, *draw.integers(0, 50, 2).tolist()}))
        params = SamplingParams(
            presence_penalty=0.3, frequency_penalty=0.2, repetition_penalty=1.3, logit_bias=bias, bad_words=banned
        )
        history = History(params, draw.integers(0, 50, 4), np.append(draw.integers(0, 50, i), target))
        found.append(None if i % 3 == 0 else history)
    return found, torch.tensor([history is not None for history in found])


def _adjusted64(row: Tensor, history: History | None) -> Tensor:
    """Differentiable, in float64, with dense masks."""
    if history is None:
        return row
    p, counts = history.params, np.bincount(history.completion, minlength=50)
    seen = torch.from_numpy((counts + np.bincount(history.prompt, minlength=50)) > 0)
    penalty = torch.from_numpy(p.frequency_penalty * counts + p.presence_penalty * (counts > 0))
    bias = torch.tensor([dict(p.logit_bias).get(i, 0.0) for i in range(50)], dtype=torch.float64)
    banned = torch.tensor([(i,) in p.bad_words for i in range(50)])
    repeated = torch.where(row > 0, row / p.repetition_penalty, row * p.repetition_penalty)
    return (torch.where(seen, repeated, row) - penalty + bias).masked_fill(banned, -1e30)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("adjusts", [False, True])
@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize(("chunk", "kept"), [(8, 0), (8, 16 * 50 * 4), (8, 1 << 20), (256, 0)])
def test_value_entropy_and_gradients_match_float64(
    temperature: float, adjusts: bool, truncated: bool, chunk: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "CHUNK", chunk)
    monkeypatch.setattr(head, "SLOPE_BYTES", kept)
    hidden, weight, ids = _case(21)
    support, mask = _kept(21, ids) if truncated else (None, torch.ones(21, 50, dtype=torch.bool))
    histories = _histories(21, ids)[0] if adjusts else [None] * 21
    hidden.requires_grad_()
    weight.requires_grad_()
    values, entropy = target_logprobs(hidden, weight, Targets(ids, temperature, support, histories))
    h64, w64 = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    adjusted = torch.stack([_adjusted64(*pair) for pair in zip(h64 @ w64.T, histories, strict=True)])
    full = (adjusted / temperature).masked_fill(~mask, -1e30).log_softmax(-1)
    expected = full.gather(1, ids[:, None])[:, 0]
    assert torch.allclose(values.double(), expected, atol=1e-5)
    assert torch.allclose(entropy.double(), -(full.exp() * full).sum(-1), atol=1e-5)
    upstream = torch.randn(21, generator=torch.Generator().manual_seed(5))
    got = torch.autograd.grad(values, (hidden, weight), upstream)
    for a, b in zip(got, torch.autograd.grad(expected, (h64, w64), upstream.double()), strict=True):
        assert torch.allclose(a.double(), b, atol=2e-5)


def test_chunking_and_neighbours_move_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, ids = _case(40, torch.bfloat16)
    whole, _ = target_logprobs(hidden, weight, Targets(ids, 0.7))
    monkeypatch.setattr(head, "CHUNK", 8)
    chunked, _ = target_logprobs(hidden, weight, Targets(ids, 0.7))
    part, _ = target_logprobs(hidden[13:18], weight, Targets(ids[13:18], 0.7))
    assert torch.equal(whole, chunked)
    assert torch.equal(whole[13:18], part)


def test_slopes_are_kept_in_whole_chunks_within_their_bytes() -> None:
    for rows in (0, 1, head.CHUNK, 5 * head.CHUNK + 1):
        for size in (1, 3):
            found = list(head._groups(rows, head.SLOPE_BYTES // (size * head.CHUNK)))
            assert [place for group in found for place in range(group.start, group.stop)] == list(range(rows))
            assert all(group.stop - group.start == size * head.CHUNK for group in found[:-1])
    assert list(head._groups(3, 1 << 40)) == [slice(0, 3)]


def test_rows_that_do_not_adjust_keep_their_bits_beside_rows_that_do() -> None:
    hidden, weight, ids = _case(12)
    hidden.requires_grad_()
    histories, adjusts = _histories(12, ids)
    plain, mixed = (target_logprobs(hidden, weight, Targets(ids, 0.7, None, h)) for h in ((), histories))
    upstream = torch.ones(12)
    slopes = [torch.autograd.grad(values, hidden, upstream)[0] for values, _ in (plain, mixed)]
    for before, after in (*zip(plain, mixed, strict=True), slopes):
        assert torch.equal(before[~adjusts], after[~adjusts])
        assert not torch.equal(before[adjusts], after[adjusts])


def test_an_fp32_head_multiplies_in_fp32_and_a_model_head_does_not() -> None:
    hidden, weight, _ = _case(9, torch.bfloat16)
    exact = hidden.double() @ weight.double().T
    assert (head_logits(hidden, weight).double() - exact).abs().max() < 1e-5
    assert (head_logits(hidden, weight.bfloat16()).double() - exact).abs().max() > 1e-3
