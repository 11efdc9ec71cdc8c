"""What a reference can be asked to assume when it scores tokens again: one factor flipped, or several.

In: nothing of ours. Out: `Hypothesis`. The empty one, `AS_STATED`, is the honest contract.

>>> Hypothesis(reading=Reading("raw")).flipped
('reading',)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Reading:
    """How logits become a logprob.

    ``processed``: as the sample's own `SamplingParams` say, but for `fields`, which replace some of them; ``raw``: log
    softmax of the plain logits; ``divided``: the raw logprob over the temperature; ``masked``: raw, but after bias and
    bad words. A support that other fields ask for is computed again from the reference's own logits. `scale` multiplies
    what these left of the logits; `late` lets penalties see the tokens up to that many before the last one.
    """

    mode: Literal["processed", "raw", "divided", "masked"] = "processed"
    fields: Mapping[str, Any] = field(default_factory=dict)
    scale: float = 1.0
    late: int = 0


@dataclass(frozen=True, slots=True)
class Weights:
    """Which weights. `version`: a number the reference holds (None: the sample's own).

    `stale` names parameters that are taken from `older` instead; ``head`` there is the weight of the logits' product
    alone, also where it is tied to the embedding. `name` picks weights that are held under a word: ``masters`` are the
    trainer's fp32 ones. With `rows`, all of this is true of the rows from `rows[id][0]` to `rows[id][1]` - 1 of a
    sample only, whose keys the later rows read; the others are as stated.
    """

    version: int | None = None
    stale: frozenset[str] = frozenset()
    older: int | None = None
    name: str = ""
    rows: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Keys:
    """Whose keys and values are read. Positions below `until[id]` of sample `id` hold those of weight version `older`.

    `instead[id]` are token ids [n] whose keys stand in the place of the first n positions (another request's prefix).
    """

    older: int | None = None
    until: Mapping[str, int] = field(default_factory=dict)
    instead: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where rows stand. `shift` is added to the positions of all rows from `start[id]` on (their keys included).

    `before[id]`: token ids that stand before the sample in a pack and are seen by it.
    """

    shift: int = 0
    start: Mapping[str, int] = field(default_factory=dict)
    before: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rounding:
    """In which dtype parts of the forward round; empty: as the model runs. `kv` and `weights` may be ``int8``."""

    head: str = ""
    rope: str = ""
    norm: str = ""
    kv: str = ""
    weights: str = ""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """Flipped factors; each at its default is as stated. `prompts[id]` replaces the prompt's ids."""

    reading: Reading = Reading()
    weights: Weights = Weights()
    keys: Keys = Keys()
    layout: Layout = Layout()
    rounding: Rounding = Rounding()
    prompts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def flipped(self) -> tuple[str, ...]:
        """Names of the factors that are not as stated."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) != getattr(AS_STATED, f.name))


AS_STATED = Hypothesis()
