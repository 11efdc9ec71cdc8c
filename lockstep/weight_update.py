"""How new weights are named, what their arrival does to what is in flight, and what proves that they are in use.

In: nothing of ours. Out: `WeightVersion`, `UpdatePolicy`, `Probe`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lockstep.errors import InputError, message


@dataclass(frozen=True, slots=True, order=True)
class WeightVersion:
    """An ordered number bound to the digest (BLAKE3, hex: `models.checkpoint.digest`) of the weights it names."""

    number: int
    digest: str

    def __post_init__(self) -> None:
        if self.number < 0 or not re.fullmatch("[0-9a-f]{64}", self.digest):
            raise InputError(
                message(
                    f"weight version ({self.number})",
                    "a version has a number >= 0 and a digest",
                    got=repr(self.digest),
                    expected="64 hex digits",
                    do="Take the version that the trainer published",
                )
            )

    def __str__(self) -> str:
        return f"{self.number}@{self.digest[:8]}"


@dataclass(frozen=True, slots=True)
class UpdatePolicy:
    """What new weights do to requests in flight, and to keys that old weights wrote.

    `pause`: ``keep`` them, to go on under the new weights; ``wait`` until they have finished; ``abort`` them.
    `kv`: ``keep`` all keys and what the prefix cache holds; ``salt``: who is in flight goes on over its keys, and
    prefixes are only found among those of the new weights; ``recompute``: as salt, and who is in flight has its keys
    made anew. `oldest_keys`: under ``keep``, prefixes with keys of older versions are not found.

    Tokens say which weights drew them, and `Provenance.spans` which wrote their keys, whatever the policy.
    """

    pause: Literal["keep", "wait", "abort"] = "keep"
    kv: Literal["keep", "salt", "recompute"] = "salt"
    oldest_keys: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """Token ids int32 [N] and the raw logprobs float32 [N - 1] that the publisher of weights gives to `token_ids[1:]`.

    It proves that weights have arrived *and* are in use, copies that were derived from them included.
    """

    token_ids: np.ndarray
    logprobs: np.ndarray
