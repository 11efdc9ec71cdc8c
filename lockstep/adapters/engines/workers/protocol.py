"""A worker as a process: it reads a JSON line with what to do, and answers with a JSON line.

In: standard input. Out: standard output, which is taken away from everybody else in the process; what libraries print
goes to standard error. Only the standard library is imported: every worker runs this file in its own environment.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

Contestant = Callable[..., dict[str, Any]]
"""`contestant(**ask)` does what it is asked once, and says how it went."""


class Channel:
    """The pair of streams to the one who asks."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def asked(self) -> dict[str, Any] | None:
        """The next thing to do; None: there is no more."""
        line = sys.stdin.readline()
        return json.loads(line) if line else None

    def answer(self, **found: Any) -> None:
        """Say what came of it."""
        self._out.write(json.dumps(found) + "\n")
        self._out.flush()


def serve(start: Callable[..., tuple[Contestant, dict[str, str]]]) -> None:
    """Take the settings, start, say what is there (`versions`), then do one thing after the other until the end."""
    channel = Channel()
    settings = channel.asked()
    if settings is None:
        return
    contestant, versions = start(**settings)
    channel.answer(versions=versions)
    while (ask := channel.asked()) is not None:
        channel.answer(**contestant(**ask))
