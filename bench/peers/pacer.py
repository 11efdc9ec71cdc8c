"""Holds a training loop between two steps until it is told to go on.

In: `{"do": "step"}`, or `{"do": "save", "path": ...}` for an HF directory of the present weights. Out: an answer to
each; a step's holds the seconds from the word to its end, and what the loop says about it. The clock stands while
weights are written.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from protocol import Channel


class Pacer:
    """Between the one who asks and a loop that calls `wait` before each step and `done` after it."""

    def __init__(self, channel: Channel, save: Callable[[str], None]) -> None:
        self._channel, self._save = channel, save
        self._began = 0.0

    def wait(self) -> None:
        """Return when the next step is asked for; leaves the process when nothing more will be."""
        while (ask := self._channel.asked()) is not None:
            if ask["do"] == "step":
                self._began = time.perf_counter()
                return
            self._save(ask["path"])
            self._channel.answer(saved=ask["path"])
        raise SystemExit(0)

    def done(self, **found: Any) -> None:
        """The step is over."""
        self._channel.answer(seconds=time.perf_counter() - self._began, **found)
