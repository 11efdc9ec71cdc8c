"""Lockstep: RL post-training in which the engine's logprobs are, bit for bit, the trainer's.

In: nothing. Out: the public names, each imported when it is first asked for, so that `import lockstep` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "Contract",
    "Decision",
    "Engine",
    "LockstepError",
    "Logprobs",
    "Request",
    "Reward",
    "Rollout",
    "RunConfig",
    "SamplingParams",
    "Task",
    "Trainer",
    "Verdict",
    "WeightVersion",
    "__version__",
]

if TYPE_CHECKING:
    from lockstep.config import RunConfig
    from lockstep.core import (
        Contract,
        Decision,
        Logprobs,
        Request,
        Reward,
        Rollout,
        SamplingParams,
        Task,
        Verdict,
    )
    from lockstep.engine import Engine
    from lockstep.errors import LockstepError
    from lockstep.train import Trainer
    from lockstep.weight_update import WeightVersion


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    match name:
        case "Engine":
            home = "lockstep.engine"
        case "Trainer":
            home = "lockstep.train"
        case "RunConfig":
            home = "lockstep.config"
        case "LockstepError":
            home = "lockstep.errors"
        case "WeightVersion":
            home = "lockstep.weight_update"
        case _ if name in __all__:
            home = "lockstep.core"
        case _:
            raise AttributeError(f"module 'lockstep' has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return list(__all__)
