"""Runs the loop: the only folder that knows all stages."""

from __future__ import annotations

from lockstep.pipeline.assembly import Parts, assemble
from lockstep.pipeline.loop import Loop

__all__ = ["Loop", "Parts", "assemble"]
