"""The engine in a process of its own.

owner.py    this process: `RemoteEngine`, what was asked for and what was handed out
process.py  starts the other process, decides whether it lives, words its end
channel.py  a pipe on which neither side waits for the other to read; messages.py: what goes through it
shared.py   the memory through which weights go
worker.py   the other process: an engine that steps for as long as there is work
"""

from __future__ import annotations

from lockstep.engine.remote.owner import RemoteEngine

__all__ = ["RemoteEngine"]
