"""SEM: does a side report the number that it should? The same tokens, read in other ways.

In: a look. Out: evidence for the reading that explains what a side reports.
"""

from __future__ import annotations

from collections.abc import Sequence

from lockstep.parity.evidence import Evidence
from lockstep.parity.hypothesis import Hypothesis, Reading
from lockstep.parity.probe import Look


def readings(look: Look) -> Sequence[Evidence]:
    """SEM01 and SEM02: raw logprobs, or raw ones over the temperature."""
    if not look.deviates("sampler"):
        return ()
    temperatures = sorted({s.params.temperature for s in look.samples if s.params is not None})
    at = f"at temperature {', '.join(map(str, temperatures))} "
    tried = (
        look.evidence("SEM01", Hypothesis(Reading("raw")), f"{at}the engine reports raw logprobs"),
        look.evidence("SEM02", Hypothesis(Reading("divided")), f"{at}the engine reports raw logprobs over T"),
    )
    return [evidence for evidence in tried if evidence is not None]
