"""What can be wrong: a fault, its layer, and how to mend it.

In: nothing of ours. Out: `Fault`, `Layer`. The catalogue (parity/catalogue/) is made of these, and the pages of
docs/faults/ are made from the catalogue.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Layer(enum.StrEnum):
    """Where a fault sits, in the order in which to look."""

    SEM = "semantics"
    DAT = "data"
    WGT = "weights"
    CAC = "cache"
    PTH = "path"
    NUM = "numerics"
    OBJ = "objective"

    @property
    def rank(self) -> int:
        """Place in the order of looking: 0 first."""
        return list(Layer).index(self)

    @classmethod
    def of(cls, code: str) -> Layer:
        """The layer of a fault's code, for example ``SEM01``."""
        return cls[code[:3]]


@dataclass(frozen=True, slots=True)
class Fault:
    """One row of the catalogue. Texts are prose in the present tense; lists of sources name frameworks and numbers.

    `hard`: it must be seen before the first step that would train on it; otherwise within three steps. `setting`: what
    to change, and where, in one line that a verdict can print. `inject`: how it is reproduced on a CPU.
    """

    code: str
    title: str
    what: str
    why_bad: str
    looks_like: str
    inject: str
    mend: str
    setting: str
    source: str
    hard: bool = True

    @property
    def layer(self) -> Layer:
        return Layer.of(self.code)
