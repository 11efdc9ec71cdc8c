"""The trainer's own model as a reference that can assume anything: what a number would be if one factor were another.

In: weights of recent versions, samples, hypotheses. Out: logprobs; under the honest hypothesis with the bits of engine
and trainer.
"""

from __future__ import annotations

from lockstep.pipeline.reference.reference import NativeReference

__all__ = ["NativeReference"]
