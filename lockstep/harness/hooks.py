"""Where a laboratory can be broken: a list of functions at each place between engine and trainer.

In: nothing. Out: `Hooks`, empty in a clean run; `Published`, weights under way; `Drawn`, a rollout as it was drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from lockstep.core import Request, Rollout
from lockstep.parity.observation import Observation, Sample, Statement
from lockstep.weight_update import WeightVersion

Drawn = tuple[Rollout, int]
"""A rollout, and how many prompt tokens came from the prefix cache."""


@dataclass(frozen=True, slots=True, eq=False)
class Published:
    """Weights on their way to the engine, in the engine's dtype. The version is the publisher's, over `original`."""

    params: Mapping[str, Tensor]
    version: WeightVersion


@dataclass(slots=True)
class Hooks:
    """Where a fault may take hold. Each list is applied in order; a clean run has none.

    `transport`: samples on their way to the trainer. `scores`: samples with the trainer's series. `record`: the whole
    observation, as the run writes it down. `publish`: parameters and version on their way to the engine; None loses
    them. `statement`: what the engine says of itself. `requests`: what the engine is asked for (the trainer believes
    the original). `believed`: what the trainer takes a rollout for (its weight versions, say) when it scores it.
    """

    transport: list[Callable[[list[Sample]], list[Sample]]] = field(default_factory=list)
    scores: list[Callable[[list[Sample]], list[Sample]]] = field(default_factory=list)
    record: list[Callable[[Observation], Observation]] = field(default_factory=list)
    publish: list[Callable[[Published], Published | None]] = field(default_factory=list)
    statement: list[Callable[[Statement], Statement]] = field(default_factory=list)
    requests: list[Callable[[list[Request]], list[Request]]] = field(default_factory=list)
    believed: list[Callable[[Rollout], Rollout]] = field(default_factory=list)
