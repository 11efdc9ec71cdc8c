"""Does the trainer give every token the logprob that the engine gave it, bit for bit?

In: rollouts and the trainer's logprobs. Out: a `ParityResult`. The public names are imported when they are first asked
for (PEP 562): the catalogue of faults, beside them, is read where numpy would be a burden.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lockstep.parity.comparison import compare
    from lockstep.parity.result import FirstDifference, ParityResult

__all__ = ["FirstDifference", "ParityResult", "compare"]

_HOMES = {
    "FirstDifference": "lockstep.parity.result",
    "ParityResult": "lockstep.parity.result",
    "compare": "lockstep.parity.comparison",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'lockstep.parity' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
