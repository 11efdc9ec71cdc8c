"""A matrix product whose rows have the same bits whatever the number of rows, their order and the thread count.

In: rows and an [out, in] weight. Out: rows. Letters: N rows, I in, O out.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lockstep.numerics import ROW_ALIGNMENT


def linear(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias` -> [N, O]. Rows are padded to `ROW_ALIGNMENT`: small M rounds another way."""
    rows = x_NI.shape[0]
    missing = -rows % ROW_ALIGNMENT
    if missing == 0:
        return F.linear(x_NI, weight_OI, bias_O)
    return F.linear(F.pad(x_NI, (0, 0, 0, missing)), weight_OI, bias_O)[:rows]
