"""Probes, one file a layer: what can be seen of a fault.

In: nothing. Out: `CHEAP`, which look at every step (they compare what was recorded, and score nothing), and `DEEP`,
which look when something has moved; both by name, in the order in which to look.
"""

from __future__ import annotations

from collections.abc import Mapping

from lockstep.parity.probe import Probe
from lockstep.parity.probes import semantics

CHEAP: Mapping[str, Probe] = {}

DEEP: Mapping[str, Probe] = {"readings": semantics.readings}
