"""The pages of the KV cache: which are free, how often each is held, how many are promised.

In: promises and releases. Out: page numbers. It counts pages and knows nothing of what is in them (see kv.py).

    free --take--> held once --share--> held twice --release--> held once --release--> free

A page is only taken against a promise made before, so that whoever was admitted can never run out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence


class PagePool:
    """Reference-counted pages 0 .. num_pages - 1."""

    __slots__ = ("_free", "_references", "_promised", "num_pages")

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))  # a stack: the lowest number is handed out first
        self._references = [0] * num_pages
        self._promised = 0

    @property
    def free(self) -> int:
        """Pages that nobody holds, promised ones included."""
        return len(self._free)

    @property
    def used(self) -> int:
        return self.num_pages - len(self._free)

    @property
    def promised(self) -> int:
        """Free pages that somebody may still take."""
        return self._promised

    @property
    def available(self) -> int:
        """Pages that can still be promised."""
        return len(self._free) - self._promised

    def promise(self, count: int) -> None:
        """Set `count` free pages aside for `take`."""
        assert 0 <= count <= self.available, f"promised {count} pages of {self.available}"
        self._promised += count

    def cancel(self, count: int) -> None:
        """Give up `count` promised pages."""
        assert 0 <= count <= self._promised, f"gave up {count} pages of {self._promised} promised"
        self._promised -= count

    def take(self) -> int:
        """Turn one promise into a page, held once."""
        assert self._promised > 0, "a page is taken against a promise"
        page = self._free.pop()
        self._promised -= 1
        self._references[page] = 1
        return page

    def share(self, page: int) -> int:
        """Hold a held page once more."""
        assert self._references[page] > 0, f"shared page {page}, which nobody holds"
        self._references[page] += 1
        return page

    def release(self, page: int) -> None:
        """Hold a page once less; the last holder frees it."""
        assert self._references[page] > 0, f"released page {page}, which nobody holds"
        self._references[page] -= 1
        if self._references[page] == 0:
            self._free.append(page)

    def references(self, page: int) -> int:
        """How often `page` is held."""
        return self._references[page]

    def check(self, tables: Iterable[Sequence[int]], promised: int) -> None:
        """Prove that `tables` are all the holders, that free + used = all, and that every promise can be kept."""
        held = Counter(page for table in tables for page in table)
        for page, count in enumerate(self._references):
            assert count == held[page], f"page {page} is held {held[page]} times but counted {count} times"
        assert len(set(self._free)) == len(self._free), "a page is free twice"
        assert not held.keys() & set(self._free), "a held page is free"
        assert len(self._free) + len(held) == self.num_pages, (
            f"{len(self._free)} free + {len(held)} used is not {self.num_pages}"
        )
        assert self._promised == promised, f"{self._promised} pages promised, {promised} expected"
        assert self._promised <= len(self._free), f"{self._promised} pages promised, {len(self._free)} free"
