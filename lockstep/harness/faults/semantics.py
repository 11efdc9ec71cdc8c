"""SEM: the engine reports a number that means something else.

In: a laboratory. Out: the same, broken. Each injection says what it does in its docstring, and nothing else does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lockstep import numerics
from lockstep.engine import draw
from lockstep.harness.injection import Injection
from lockstep.harness.laboratory import Laboratory
from lockstep.kernels.sampling import Sampled


def raw(laboratory: Laboratory) -> None:
    """SEM01: tokens are drawn at T, logprobs are those of the plain logits."""
    drawn_by = draw.sample

    def sample(logits_NV: torch.Tensor, *rest: Any) -> Sampled:
        drawn = drawn_by(logits_NV, *rest)
        return Sampled(drawn.token_ids, _plain(logits_NV, drawn.token_ids), drawn.supports)

    laboratory.patch(draw, "sample", sample)


def _plain(logits_NV: torch.Tensor, ids_N: np.ndarray) -> np.ndarray:
    """float32 [N]: log softmax of the plain logits at the drawn ids."""
    return numerics.log_softmax(logits_NV).gather(1, torch.from_numpy(ids_N)[:, None])[:, 0].numpy()


INJECTIONS: Sequence[Injection] = (Injection("SEM01", raw, {"exact": True}),)
