"""What an engine in a process of its own and its owner say to each other.

In: nothing. Out: frozen values that can be pickled. Commands are obeyed in the order in which they were sent; those
with a `number` are answered under it. Weights do not travel here: see shared.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from lockstep.config import EngineConfig
from lockstep.core import Request, Rollout
from lockstep.engine.remote.shared import Place, SharedMemory
from lockstep.weight_update import Probe, UpdatePolicy, WeightVersion


@dataclass(frozen=True, slots=True)
class Start:
    """What the process needs to set the engine up; its first weights lie in the first memory. `threads` 0: default."""

    memories: tuple[SharedMemory, SharedMemory]
    directory: str
    version: WeightVersion
    places: tuple[Place, ...]
    config: EngineConfig
    device: str | torch.device
    threads: int


@dataclass(frozen=True, slots=True)
class Add:
    """Queue a request."""

    request: Request


@dataclass(frozen=True, slots=True)
class Abort:
    """End a request; answered with what its unfinished completions have so far."""

    number: int
    request_id: str


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """Serve the tensors at `places` of memory `index`."""

    number: int
    index: int
    places: tuple[Place, ...]
    version: WeightVersion
    policy: UpdatePolicy | None
    probe: Probe | None


@dataclass(frozen=True, slots=True)
class Look:
    """Answered with what the engine's method of this name returns."""

    number: int
    what: Literal["memory", "counters", "check"]


@dataclass(frozen=True, slots=True)
class Retry:
    """Run the step again that has failed."""


@dataclass(frozen=True, slots=True)
class Leave:
    """End the process."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The engine is set up."""


@dataclass(frozen=True, slots=True)
class Alive:
    """A step has ended in which nobody finished; sent about once a second."""


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """Completions that have ended, each sent once."""

    rollouts: list[Rollout]


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """To command `number`: its value, or the error that it raised."""

    number: int
    value: Any = None
    error: Exception | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Failed:
    """A step, or the setting up, raised `error`. No step runs before the next command."""

    error: Exception
