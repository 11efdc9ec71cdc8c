"""May this pass? Gates answer admit, hold or reject, with a reason and evidence.

In: what was measured. Out: a `Decision` about one subject.
"""

from __future__ import annotations

from lockstep.gates.parity import ParityEvidence, ParityGate

__all__ = ["ParityEvidence", "ParityGate"]
