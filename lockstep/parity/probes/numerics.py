"""NUM: the same formula, rounded otherwise on one side. Looked at after everything that has a name and a place.

In: a look. Out: evidence for the rounding that explains what a side reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lockstep.parity.evidence import Evidence
from lockstep.parity.hypothesis import Hypothesis, Rounding
from lockstep.parity.probe import Look
from lockstep.parity.side import CannotAsk

WIDE = ("float32", "fp32", "torch.float32")

ROUNDINGS = (
    ("NUM01", Rounding(head="bfloat16"), "the engine's logits come from a bf16 product"),
    ("NUM03", Rounding(rope="bfloat16"), "the engine's rotary angles are bf16"),
    ("NUM04", Rounding(norm="bfloat16"), "the engine's norms are summed in bf16"),
    ("NUM05", Rounding(kv="int8"), "the engine's keys and values are int8"),
    ("NUM05", Rounding(weights="int8"), "the engine's weights are int8"),
)


def roundings(look: Look) -> Sequence[Evidence]:
    """NUM01 to NUM05: one part of the forward in a narrower dtype."""
    if not look.deviates("sampler"):
        return ()
    said = look.observation.engine.settings.get("head_dtype")
    found, cannot = [], ""
    for code, rounding, why in ROUNDINGS:
        try:
            evidence = look.evidence(code, Hypothesis(rounding=rounding), why)
        except CannotAsk as unable:
            cannot = str(unable)
            continue
        if evidence is not None and code == "NUM01" and str(said) in WIDE:
            evidence = replace(evidence, code="NUM02", why=f"{evidence.why}, although it says {said}")
        if evidence is not None:
            found.append(evidence)
    if cannot and not found:
        raise CannotAsk(cannot)
    return found


def itself(look: Look) -> Sequence[Evidence]:
    """NUM06: two passes of the trainer over the same tokens and weights do not agree."""
    told = [s for s in look.samples if s.again is not None and len(s.again) == len(s.token_ids)]
    if not told:
        raise CannotAsk("trainer against itself: only one pass was recorded")
    far = np.concatenate([np.abs(s.trainer.astype(np.float64) - s.again) for s in told])  # type: ignore[union-attr]
    if not far.any() or far.mean() <= look.grain:
        return ()
    why = (
        f"the trainer's two passes over the same tokens differ in {np.count_nonzero(far)} of {len(far)} logprobs, "
        f"by {far.mean():.3g} nats on average and {far.max():.3g} at most"
    )
    return [Evidence("NUM06", why, certain=True, figures={"mean": float(far.mean()), "max": float(far.max())})]
