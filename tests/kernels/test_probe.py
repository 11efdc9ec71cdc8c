"""The probe passes here, and stops a run whose kernel is not invariant."""

from __future__ import annotations

import pytest
import torch

from lockstep.errors import NumericsError
from lockstep.kernels import probe
from lockstep.kernels.linear import Packed, linear, pack
from lockstep.kernels.probe import Subject, invariance_probe


def _subject(dtype: torch.dtype) -> Subject:
    g = torch.Generator().manual_seed(0)
    shapes = {"qkv": (96, 64), "down": (64, 128), "embedding": (500, 64)}
    weights = {n: torch.randn(s, generator=g).to(dtype) for n, s in shapes.items()}
    return Subject(weights, pack(weights["embedding"], wide=True), (4, 2, 16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_kernel_is_found_invariant(dtype: torch.dtype) -> None:
    findings = invariance_probe(_subject(dtype))
    rowwise = {"linear", "head", "rms_norm", "rotate", "silu_mul", "logprob"}
    assert {k.split()[0] for k in findings} == rowwise | {"attention", "kernels", "seconds"}
    assert all("use" in found or "rows" in found for name, found in findings.items() if name != "seconds")


def test_a_linear_that_depends_on_the_number_of_rows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "linear", lambda x, w: linear(x, w) * (1 + 1e-6 * (x.shape[0] == 5)))
    with pytest.raises(NumericsError, match=r"linear \[96, 64\].*5 rows"):
        invariance_probe(_subject(torch.float32))


def test_a_head_that_depends_on_the_number_of_rows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(x: torch.Tensor, w: torch.Tensor | Packed) -> torch.Tensor:
        return linear(x, w) * (1 + 1e-6 * (x.shape[0] == 5 and w is subject.head))

    subject = _subject(torch.bfloat16)
    monkeypatch.setattr(probe, "linear", broken)
    with pytest.raises(NumericsError, match=r"head \[500, 64\] bfloat16, fp32 logits.*5 rows"):
        invariance_probe(subject)


def test_an_attention_whose_decode_differs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = probe.paged_attention
    monkeypatch.setattr(probe, "paged_attention", lambda q, *rest: real(q, *rest) + 1e-6 * (q.shape[0] == 1))
    with pytest.raises(NumericsError, match="attention"):
        invariance_probe(_subject(torch.float32))


def test_a_packed_attention_that_differs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = probe.packed_attention
    monkeypatch.setattr(probe, "packed_attention", lambda *all_of_it: real(*all_of_it) + 1e-6)
    with pytest.raises(NumericsError, match="packed forward"):
        invariance_probe(_subject(torch.float32))


def test_the_kernels_that_ran_are_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCKSTEP_KERNELS", "reference")
    assert invariance_probe(_subject(torch.float32))["kernels"] == "use PyTorch"
