"""One end of a pipe between two processes, with which nobody ever waits for the other side to read.

In: a connection. Out: messages, whole and in order. Everything that was sent before the peer ended is still handed out.

    put -> outbox --thread--> pipe --thread--> inbox -> get

Both processes write at any time: without the threads two full pipes would leave each waiting for the other to read.
"""

from __future__ import annotations

import pickle
import queue
import threading
from multiprocessing.connection import Connection
from typing import Any


class Channel:
    """`put` returns at once, `get` after as long as it is told. What is sent to a peer that has ended is lost."""

    __slots__ = ("_connection", "_ended", "_inbox", "_outbox", "_reader", "_writer")

    def __init__(self, connection: Connection) -> None:
        """Take over `connection`, which nobody else may use any more."""
        self._connection = connection
        self._ended = False
        self._inbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=_read, args=(connection, self._inbox), name="reader", daemon=True)
        self._writer = threading.Thread(target=_write, args=(connection, self._outbox), name="writer", daemon=True)
        self._reader.start()
        self._writer.start()

    def put(self, message: Any) -> None:
        """Send a message. It is pickled here, so that what cannot be sent fails in the hands of who sends it."""
        self._outbox.put(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))

    def get(self, seconds: float | None = 0.0) -> Any | None:
        """The next message; None if none has come within `seconds` (None: wait for one).

        Raises `EOFError` once the peer has ended and everything that it sent has been taken.
        """
        if self._ended:
            raise EOFError("the peer has ended")
        try:
            content = self._inbox.get(timeout=seconds) if seconds != 0.0 else self._inbox.get_nowait()
        except queue.Empty:
            return None
        if content is None:
            self._ended = True
            raise EOFError("the peer has ended")
        return pickle.loads(content)

    def close(self, seconds: float = 5.0) -> None:
        """Send what is left, and stop. The reader only ends with the peer; within `seconds` that must have happened."""
        self.flush(seconds)
        self._reader.join(seconds)
        if not self._reader.is_alive():  # a descriptor that a thread still reads must not be given to another file
            self._connection.close()

    def flush(self, seconds: float = 5.0) -> None:
        """Send what is left; nothing can be sent afterwards."""
        self._outbox.put(None)
        self._writer.join(seconds)


def _read(connection: Connection, inbox: queue.SimpleQueue[bytes | None]) -> None:
    try:
        while True:
            inbox.put(connection.recv_bytes())
    except (EOFError, OSError):  # the peer has ended, maybe in the middle of a message
        inbox.put(None)


def _write(connection: Connection, outbox: queue.SimpleQueue[bytes | None]) -> None:
    try:
        while (content := outbox.get()) is not None:
            connection.send_bytes(content)
    except OSError:
        return
