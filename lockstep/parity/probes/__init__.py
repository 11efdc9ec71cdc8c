"""Probes, one file a layer: what can be seen of a fault.

In: nothing. Out: `CHEAP`, which look at every step (they compare what was recorded, and score nothing), and `DEEP`,
which look when something has moved; both by name, in the order in which to look.
"""

from __future__ import annotations

from collections.abc import Mapping

from lockstep.parity.probe import Probe
from lockstep.parity.probes import cache, data, numerics, objective, path, semantics, weights

CHEAP: Mapping[str, Probe] = {
    "counts": data.counts,
    "prompts as run": data.templates,
    "copies": data.copies,
    "label": weights.label,
    "tensors": weights.tensors,
    "trainer against itself": numerics.itself,
    "repetition": objective.repetition,
    "metrics": objective.metrics,
    "sequence weights": objective.weights,
    "reference policy": objective.replaced,
}

DEEP: Mapping[str, Probe] = {
    "filled-in values": semantics.filled,
    "scores as a prompt": semantics.rescored,
    "readings": semantics.readings,
    "shifted by one": data.shifted,
    "swapped samples": data.swapped,
    "other prompts": data.prompts,
    "neighbours in a pack": data.neighbours,
    "versions": weights.versions,
    "torn update": weights.torn,
    "identity update": weights.identity,
    "scale": weights.scale,
    "fp32 masters": weights.masters,
    "prefix cache": cache.prefixes,
    "mixed keys": cache.mixed,
    "other prefixes": cache.strangers,
    "garbage": cache.garbage,
    "offsets": path.offsets,
    "late penalties": path.late,
    "company and order": path.company,
    "decode against prefill": path.decoding,
    "roundings": numerics.roundings,
    "staleness": objective.staleness,
}
