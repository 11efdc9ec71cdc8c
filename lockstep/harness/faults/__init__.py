"""The faults of the catalogue, as they are put into a laboratory; one file a layer.

In: nothing. Out: `INJECTIONS` by code.
"""

from __future__ import annotations

from collections.abc import Mapping

from lockstep.harness.faults import cache, data, numerics, objective, path, semantics, weights
from lockstep.harness.injection import Injection

_ALL = (
    *semantics.INJECTIONS,
    *data.INJECTIONS,
    *weights.INJECTIONS,
    *cache.INJECTIONS,
    *path.INJECTIONS,
    *numerics.INJECTIONS,
    *objective.INJECTIONS,
)

INJECTIONS: Mapping[str, Injection] = {injection.code: injection for injection in _ALL}

assert len(INJECTIONS) == len(_ALL), "one injection a code"
