"""Weight updates of which one bit is wrong; each must be refused, with the old weights serving.

In: how many. Out: how many were caught.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lockstep.errors import InputError, NumericsError
from lockstep.harness.draws import Draws
from lockstep.harness.networks import DTYPES, FAMILIES, Networks

ROUND = 50  # updates after which the numbers are passed on


@dataclass(frozen=True, slots=True)
class Caught:
    """`caught` of `updates` were refused; `wrong` names the first that was not."""

    updates: int = 0
    caught: int = 0
    wrong: str = ""


def flips(count: int, directory: Path, seed: int = 0) -> Iterator[Caught]:
    """Flip a random bit of a random tensor of an otherwise right update, `count` times; yields running sums."""
    draws, networks = Draws(seed, "flips"), Networks(directory)
    tried = caught = 0
    while tried < count:
        network = networks.get(draws.choice(FAMILIES), draws.choice(DTYPES))
        engine, params, version = network.engine(kv_cache_gb=0.001), network.weights(1), network.version(1, 1)
        names = sorted(params)
        for _ in range(min(ROUND, count - tried)):
            name = draws.choice(names)
            broken, where = _flipped(params[name], draws)
            tried += 1
            try:
                engine.update_weights({**params, name: broken}, version, share=True)
            except (NumericsError, InputError):
                caught += engine.version.number == 0
            if caught < tried:
                yield Caught(tried, caught, f"bit {where} of {name} ({network.model.arch.family}) was taken")
                return
        engine.update_weights(params, version)  # the right one is still welcome
        yield Caught(tried, caught)


def _flipped(tensor: Tensor, draws: Draws) -> tuple[Tensor, int]:
    """A copy with one bit the other way, and which bit of its bytes that is."""
    data = np.frombuffer(bytearray(tensor.contiguous().view(torch.uint8).numpy().tobytes()), np.uint8)
    where = draws.integer(0, 8 * len(data) - 1)
    data[where // 8] ^= 1 << (where % 8)
    return torch.from_numpy(data).view(tensor.dtype).view(tensor.shape), where
