"""Ctrl-C and SIGTERM as a request to stop at the next whole step, instead of an exception anywhere.

In: signals. Out: `StopRequest.check()` raises `Interrupted` where the run can be left. A second Ctrl-C does so at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from lockstep.errors import Interrupted


class StopRequest:
    """Whether somebody asked for a stop."""

    def __init__(self) -> None:
        self.requested = False

    def check(self) -> None:
        """Raise `Interrupted` if a stop was asked for."""
        if self.requested:
            raise Interrupted("interrupted: the step in progress was dropped, all steps before it are kept")

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM while inside; elsewhere than in the main thread signals stay as they are."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
