"""The rollout engine: prompts to completions with logprobs that say what they are.

In: a model, its weights and their version; requests. Out: `Rollout`s.

    Engine -> Scheduler (what runs) -> PagePool (where keys go)
           -> last_hidden over KeyValues (one forward a step) -> draw -> Completion
           -> Weights (which generation serves)
"""

from __future__ import annotations

from lockstep.engine.accounting import Counters, Memory
from lockstep.engine.engine import Engine
from lockstep.engine.remote import RemoteEngine

__all__ = ["Counters", "Engine", "Memory", "RemoteEngine"]
