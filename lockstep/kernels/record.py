"""Calls a kernel with or without a record for the backward pass.

In: a `torch.autograd.Function` and its inputs. Out: what its forward gives. Engines record nothing, and autograd's
book-keeping costs more than a small kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Unrecorded:
    """A context that forgets what it is given."""

    def save_for_backward(self, *_: Tensor) -> None:
        """Nothing will be asked for."""


def recorded(function: type[torch.autograd.Function], *inputs: Any) -> Any:
    """`function.apply`; where gradients are switched off, its forward alone, with the same bits."""
    if torch.is_grad_enabled():
        return function.apply(*inputs)
    return function.forward(_Unrecorded(), *inputs)
