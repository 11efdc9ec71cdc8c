"""Probes, one file a layer: what can be seen of a fault.

In: nothing. Out: `CHEAP`, which look at every step (they compare what was recorded, and score nothing), and `DEEP`,
which look when something has moved; both by name, in the order in which to look.
"""

from __future__ import annotations

from collections.abc import Mapping

from lockstep.parity.fault import Layer
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

_DEEP: Mapping[Layer, Mapping[str, Probe]] = {
    Layer.SEM: {
        "filled-in values": semantics.filled,
        "scores as a prompt": semantics.rescored,
        "readings": semantics.readings,
    },
    Layer.DAT: {
        "shifted by one": data.shifted,
        "swapped samples": data.swapped,
        "other prompts": data.prompts,
        "neighbours in a pack": data.neighbours,
    },
    Layer.WGT: {
        "versions": weights.versions,
        "torn update": weights.torn,
        "identity update": weights.identity,
        "scale": weights.scale,
        "fp32 masters": weights.masters,
    },
    Layer.CAC: {
        "prefix cache": cache.prefixes,
        "mixed keys": cache.mixed,
        "other prefixes": cache.strangers,
        "garbage": cache.garbage,
    },
    Layer.PTH: {
        "offsets": path.offsets,
        "late penalties": path.late,
        "company and order": path.company,
        "decode against prefill": path.decoding,
    },
    Layer.NUM: {"roundings": numerics.roundings},
    Layer.OBJ: {"staleness": objective.staleness},
}

DEEP: Mapping[str, Probe] = {name: probe for probes in _DEEP.values() for name, probe in probes.items()}

LAYER_OF: Mapping[str, Layer] = {name: layer for layer, probes in _DEEP.items() for name in probes}
"""The layer that a deep probe looks at."""
