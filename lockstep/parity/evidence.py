"""What a probe found, and what an audit concludes.

In: nothing of ours but the layer and the hypothesis. Out: `Evidence`, `Finding`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lockstep.parity.fault import Layer
from lockstep.parity.hypothesis import Hypothesis


@dataclass(frozen=True, slots=True)
class Evidence:
    """One reason to believe in a fault. `explained` is the fraction of the mismatch that goes away under it (1: all).

    `certain`: the evidence is a contradiction in what was recorded, not a matter of size (a digest that is not the
    label's, a series one token short): it counts without any mismatch. `why` is a sentence with the figures seen.
    `hypothesis`: what the reference was asked to assume of `who`, if the evidence is of that kind.
    """

    code: str
    why: str
    explained: float = 1.0
    certain: bool = False
    figures: Mapping[str, Any] = field(default_factory=dict)
    hypothesis: Hypothesis | None = field(default=None, compare=False, repr=False)
    who: str = field(default="sampler", compare=False, repr=False)

    @property
    def layer(self) -> Layer:
        return Layer.of(self.code)


@dataclass(frozen=True, slots=True)
class Finding:
    """The conclusion about one observation, or several.

    ``parity``: nothing moved beyond the noise floor; ``fault``: a cause has a name; ``undetermined``: something moved
    and no cause explains it. `evidence` begins with what decided. `skipped` says which probes could not look, and why.
    """

    status: Literal["parity", "fault", "undetermined"]
    step: int
    evidence: tuple[Evidence, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def code(self) -> str | None:
        """The fault's code, if one is named."""
        return self.evidence[0].code if self.status == "fault" else None

    @property
    def layer(self) -> Layer | None:
        return self.evidence[0].layer if self.status == "fault" else None
