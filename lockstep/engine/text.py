"""The text of one completion while it is drawn, cut before the first stop string.

In: tokens, one at a time. Out: text that may be shown, and whether a stop string is complete. What might still turn out
to be the beginning of a stop string is held back.
"""

from __future__ import annotations

from typing import Protocol


class Detokenizer(Protocol):
    """Turns tokens into whole characters; all pieces joined are the text of all tokens."""

    def push(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


class StopText:
    """`text` so far. After a stop string it ends before it, and nothing is added any more."""

    __slots__ = ("_detokenizer", "_ended", "_given", "_longest", "_stop", "text")

    def __init__(self, detokenizer: Detokenizer, stop: tuple[str, ...] = ()) -> None:
        self._detokenizer = detokenizer
        self._stop = stop
        self._longest = max(map(len, stop), default=0)
        self._given = 0
        self._ended = False
        self.text = ""

    def push(self, token_id: int) -> bool:
        """Add a token; whether it completed a stop string."""
        assert not self._ended, "nothing follows the end of a text"
        return self._add(self._detokenizer.push(token_id))

    def close(self) -> bool:
        """No more tokens: add what is left of them; whether that completed a stop string."""
        if self._ended:
            return False
        stopped = self._add(self._detokenizer.flush())
        self._ended = True
        return stopped

    def take(self) -> str:
        """The text that may be shown and was not taken yet."""
        end = len(self.text) if self._ended else len(self.text) - self._held()
        piece = self.text[self._given : end]
        self._given += len(piece)
        return piece

    def _add(self, piece: str) -> bool:
        begin = max(0, len(self.text) - self._longest + 1)  # a match must end in the new piece
        self.text += piece
        found = [at for stop in self._stop if (at := self.text.find(stop, begin)) >= 0]
        if found:
            self.text = self.text[: min(found)]
            self._ended = True
        return bool(found)

    def _held(self) -> int:
        """Characters at the end of the text that begin a stop string."""
        for size in range(min(self._longest - 1, len(self.text)), 0, -1):
            tail = self.text[-size:]
            if any(stop.startswith(tail) for stop in self._stop):
                return size
        return 0
