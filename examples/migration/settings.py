"""The four settings of the migration, by the values that they had in the engine before and after.

In: nothing. Out: `Settings`, the two ends `REFERENCE` and `NAIVE`, and what lies between them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Literal

from lockstep.parity.qualify.difference import Difference, differences


@dataclass(frozen=True, slots=True)
class Settings:
    """What an engine was told. The first value of each is the right one.

    `logprobs_mode`: of the distribution that was sampled, or of the plain logits. `cache_salt`: whether the weight
    version is part of a prefix's key. `update_mode`: whether requests in flight get their keys made anew by new weights
    or go on over the old ones. `head_dtype`: of the logits' product.
    """

    logprobs_mode: Literal["processed_logprobs", "raw_logprobs"] = "processed_logprobs"
    cache_salt: Literal["per_version", "none"] = "per_version"
    update_mode: Literal["recompute", "keep"] = "recompute"
    head_dtype: Literal["float32", "bfloat16"] = "float32"


REFERENCE = Settings()
NAIVE = Settings("raw_logprobs", "none", "keep", "bfloat16")

CAUSES = {"logprobs_mode": "SEM01", "cache_salt": "CAC01", "update_mode": "CAC02", "head_dtype": "NUM01"}
"""The fault of the catalogue that each setting is at its second value."""


def changed() -> tuple[Difference, ...]:
    """The settings in which the naive engine is not the reference, by name."""
    return differences(asdict(REFERENCE), asdict(NAIVE), equal=())


def put_back(names: Collection[str]) -> Settings:
    """The naive engine with the settings of these names as the reference had them."""
    right = asdict(REFERENCE)
    return replace(NAIVE, **{name: right[name] for name in names})
