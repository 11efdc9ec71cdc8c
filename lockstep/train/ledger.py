"""The ledger: every token that a correction saw, by what became of it and by the sign of its advantage.

In: advantages and corrected weights, microbatch by microbatch. Out: metrics under their published names. Every token is
in exactly one account, so that the accounts add up to the tokens of the batch.

Letters: N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lockstep.train.corrections import Cause, Corrected

SIGNS = ("negative", "zero", "positive")  # of the advantage; its sign + 1 is the place
REMOVING = tuple(cause for cause in Cause if cause > Cause.CAPPED)


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """What happened to some tokens. `tokens` int64 and `advantage` (sum of |A|) float64 are [sign, cause].

    `weight` and `weight_squared` are sums over all of them; `clipped` is how many the objective clipped after all.
    """

    tokens: np.ndarray
    advantage: np.ndarray
    weight: float
    weight_squared: float
    clipped: int


def entry(advantages_N: Tensor, corrected: Corrected, clipped_N: Tensor) -> Entry:
    """The entry of one microbatch."""
    advantages = advantages_N.cpu().numpy().astype(np.float64)
    causes, weights = corrected.causes_N.cpu().numpy(), corrected.weights_N.cpu().numpy().astype(np.float64)
    shape = (len(SIGNS), len(Cause))
    account = np.ravel_multi_index((np.sign(advantages).astype(np.int64) + 1, causes.astype(np.int64)), shape)
    size = shape[0] * shape[1]
    return Entry(
        tokens=np.bincount(account, minlength=size).reshape(shape),
        advantage=np.bincount(account, np.abs(advantages), minlength=size).reshape(shape),
        weight=float(weights.sum()),
        weight_squared=float(np.square(weights).sum()),
        clipped=int(clipped_N.sum()),
    )


def metrics(entries: Sequence[Entry]) -> dict[str, float]:
    """All entries of a step together; nothing if there are none, for then nothing was corrected.

    Counts are whole numbers. `ess_after` is (sum w)^2 / (N sum w^2) over all N tokens, 0.0 if all were removed.
    """
    if not entries:
        return {}
    tokens, advantage = sum(one.tokens for one in entries), sum(one.advantage for one in entries)
    assert isinstance(tokens, np.ndarray) and isinstance(advantage, np.ndarray), "an entry has accounts"
    total = int(tokens.sum())
    weight, squared = (sum(getattr(one, name) for one in entries) for name in ("weight", "weight_squared"))
    found = {
        "corrections/frac_removed": float(tokens[:, REMOVING].sum() / total),
        "corrections/frac_capped": float(tokens[:, Cause.CAPPED].sum() / total),
        "corrections/frac_clipped": sum(one.clipped for one in entries) / total,
        "corrections/mean_weight": weight / total,
        "corrections/ess_after": weight**2 / (total * squared) if squared else 0.0,
    }
    for place, sign in enumerate(SIGNS):
        found[f"corrections/kept_{sign}"] = int(tokens[place, Cause.NONE])
        found[f"corrections/capped_{sign}"] = int(tokens[place, Cause.CAPPED])
        for cause in REMOVING:
            found[f"corrections/removed_{sign}/{cause.name.lower()}"] = int(tokens[place, cause])
    for sign in ("negative", "positive"):
        mine = advantage[SIGNS.index(sign)]
        found[f"corrections/advantage_{sign}"] = float(mine.sum())
        found[f"corrections/advantage_removed_{sign}"] = (
            float(mine[list(REMOVING)].sum() / mine.sum()) if mine.sum() else 0.0
        )
    return found
