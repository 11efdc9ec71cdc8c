"""Without gradients the same bits come out, and nothing is kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lockstep.kernels.activation import silu_mul
from lockstep.kernels.linear import linear, pack
from lockstep.kernels.norm import rms_norm
from lockstep.kernels.record import recorded
from lockstep.kernels.rope import inverse_frequencies, rotate, rotation


def _randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


ANGLES = rotation(inverse_frequencies(16, 1e4), torch.arange(7))
WEIGHT, BIAS, GAIN = _randn(20, 32), _randn(20), _randn(32)
KERNELS = {
    "linear": lambda x: linear(x, WEIGHT, BIAS),
    "packed": lambda x: linear(x, pack(WEIGHT)),
    "rms_norm": lambda x: rms_norm(x, GAIN, 1e-5),
    "silu_mul": silu_mul,
    "rotate": lambda x: rotate(x.view(7, 2, 16), *ANGLES),
}


@pytest.mark.parametrize("mode", ["native", "reference"])
@pytest.mark.parametrize("name", KERNELS)
def test_switching_gradients_off_moves_no_bit(name: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCKSTEP_KERNELS", mode)
    x = _randn(7, 32).requires_grad_()
    with_record = KERNELS[name](x)
    assert with_record.requires_grad
    with_record.float().sum().backward()
    for off in (torch.no_grad(), torch.inference_mode()):
        with off:
            found = KERNELS[name](x)
        assert not found.requires_grad
        assert torch.equal(found, with_record.detach())


def test_only_what_is_recorded_goes_through_autograd() -> None:
    calls = []

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            calls.append(type(ctx).__name__)
            ctx.save_for_backward(x)
            return 2 * x

        @staticmethod
        def backward(ctx, *grads):
            return 2 * grads[0]

    x = torch.ones(2, requires_grad=True)
    (slope,) = torch.autograd.grad(recorded(Doubled, x).sum(), x)
    with torch.no_grad():
        assert recorded(Doubled, x).tolist() == [2.0, 2.0]
    assert slope.tolist() == [2.0, 2.0]
    assert calls == ["DoubledBackward", "_Unrecorded"]
