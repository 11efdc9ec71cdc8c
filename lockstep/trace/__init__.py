"""What a run leaves on disk, and who may watch it. In: the loop's events. Out: a run directory that can be audited."""

from __future__ import annotations

from lockstep.trace.observer import Observer, Observers
from lockstep.trace.rollouts import RolloutRecord
from lockstep.trace.run import Refusal, RunDirectory

__all__ = ["Observer", "Observers", "Refusal", "RolloutRecord", "RunDirectory"]
