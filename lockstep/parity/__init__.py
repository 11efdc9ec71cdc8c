"""Does the trainer give every token the logprob that the engine gave it, bit for bit?

In: rollouts and the trainer's logprobs. Out: a `ParityResult`.
"""

from __future__ import annotations

from lockstep.parity.compare import compare
from lockstep.parity.result import FirstDifference, ParityResult

__all__ = ["FirstDifference", "ParityResult", "compare"]
