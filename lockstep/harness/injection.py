"""How a fault of the catalogue is put into a laboratory.

In: nothing of ours but the laboratory. Out: `Injection`; the tables of harness/faults/ are made of these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lockstep.harness.laboratory import Laboratory


@dataclass(frozen=True, slots=True)
class Injection:
    """`install` breaks a laboratory, which then stays broken. It is called once, after step `onset` - 1 has been
    observed and before the trainer takes it, so that the update between the two is the first that can go wrong.

    `setup`: fields of `Setup` without which the fault has no effect (raw logprobs at T = 1 are right); all others are
    drawn at random. Steps before `onset`, which is 2 or more, are clean. `beneath`: the faults that this one hides;
    naming one of them is right if this one is among the evidence.
    """

    code: str
    install: Callable[[Laboratory], None]
    setup: Mapping[str, Any] = field(default_factory=dict)
    onset: int = 2
    beneath: tuple[str, ...] = ()
