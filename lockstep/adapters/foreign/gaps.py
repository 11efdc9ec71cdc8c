"""What could not be read of a run that could otherwise: a partial report says so.

In: words. Out: `Gaps`, which keeps the first of them and counts the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SHOWN = 20


@dataclass(slots=True)
class Gaps:
    """Sentences without their full stop, in the order in which they were met. `damaged` counts those of them that tell
    of something the run wrote and that is lost: then a report is of a part only."""

    shown: list[str] = field(default_factory=list)
    count: int = 0
    damaged: int = 0

    def add(self, text: str, *, damage: bool = False) -> None:
        """Note something that was left out."""
        self.count += 1
        self.damaged += damage
        if len(self.shown) < SHOWN:
            self.shown.append(text)

    def clear(self) -> None:
        """Begin anew, with a new pass over the files."""
        self.shown.clear()
        self.count = self.damaged = 0

    @property
    def texts(self) -> tuple[str, ...]:
        """What was noted; the last says how many more there are."""
        more = self.count - len(self.shown)
        return (*self.shown, f"and {more} more") if more else tuple(self.shown)
