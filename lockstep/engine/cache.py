"""The pages of the KV cache: which are free, which are held and how often, which hold a prefix that may be used again.

In: takes, holds, releases, keys of full pages. Out: page numbers. It counts pages and knows nothing of what is in them
(see kv.py).

    free --take--> held once <--hold/release--> held twice ...
      ^              | register: its content has a key        evict: the least recently used
      |              v                                                  ^
      +--release-- held --release, if it has a key--> cached --hold--> held

A key says everything that decides the bits of a page: the salt of its time (see `root_key`) and every token up to its
end. So whoever finds a page by its key may use it as it is.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np

from lockstep.core import Span


def root_key(salt: str) -> bytes:
    """The key before the first page. The salt names the weights, so that new ones can never find pages of old ones."""
    return hashlib.blake2b(salt.encode(), digest_size=16, person=b"lockstep root").digest()


def page_key(parent: bytes, tokens: np.ndarray) -> bytes:
    """The key of a full page: of the page before it, and of its own token ids (int32)."""
    assert tokens.dtype == np.int32, f"token ids are int32, got {tokens.dtype}"
    return hashlib.blake2b(tokens.tobytes(), digest_size=16, key=parent).digest()


class PagePool:
    """Reference-counted pages 0 .. num_pages - 1, of which those with a key outlive their last holder."""

    __slots__ = ("_by_key", "_cached", "_free", "_key", "_references", "_spans", "num_pages")

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))  # a stack: the lowest number is handed out first
        self._references = [0] * num_pages
        self._cached: OrderedDict[int, None] = OrderedDict()  # held by nobody, the least recently used first
        self._by_key: dict[bytes, int] = {}
        self._key: dict[int, bytes] = {}
        self._spans: dict[int, tuple[Span, ...]] = {}

    @property
    def free(self) -> int:
        """Pages without content that nobody holds."""
        return len(self._free)

    @property
    def cached(self) -> int:
        """Pages that nobody holds and that still have a key."""
        return len(self._cached)

    @property
    def used(self) -> int:
        """Pages that somebody holds."""
        return self.num_pages - self.free - self.cached

    @property
    def available(self) -> int:
        """Pages that `take` can still give: free ones, then cached ones."""
        return self.free + self.cached

    def take(self) -> int:
        """An empty page, held once. The least recently used cached page gives way if none is free."""
        assert self.available, "whoever takes a page has looked whether there is one"
        if not self._free:
            page, _ = self._cached.popitem(last=False)
            self._forget(page)
            self._free.append(page)
        page = self._free.pop()
        self._references[page] = 1
        return page

    def hold(self, page: int) -> int:
        """Hold a page with content once more."""
        if self._references[page] == 0:
            assert page in self._cached, f"held page {page}, which is empty"
            del self._cached[page]
        self._references[page] += 1
        return page

    def release(self, page: int) -> None:
        """Hold a page once less; after the last holder it is cached if it has a key, else free."""
        assert self._references[page] > 0, f"released page {page}, which nobody holds"
        self._references[page] -= 1
        if self._references[page] == 0:
            if page in self._key:
                self._cached[page] = None
            else:
                self._free.append(page)

    def register(self, page: int, key: bytes, spans: tuple[Span, ...]) -> None:
        """Name the content of a full, held page. Does nothing if another page has it already."""
        assert self._references[page] > 0, f"named page {page}, which nobody holds"
        if key not in self._by_key and page not in self._key:
            self._by_key[key] = page
            self._key[page] = key
            self._spans[page] = spans

    def find(self, key: bytes) -> int | None:
        """The page with this content, if there is one."""
        return self._by_key.get(key)

    def spans(self, page: int) -> tuple[Span, ...]:
        """At which weights the positions of a page with a key were run."""
        return self._spans[page]

    def forget_all(self) -> None:
        """Take every key away: nothing is found any more, cached pages become free, held ones stay held."""
        self._free += self._cached
        self._cached.clear()
        for page in list(self._key):
            self._forget(page)

    def writable(self, page: int) -> bool:
        """Whether exactly one holder has this page and nobody else can come upon it."""
        return self._references[page] == 1 and page not in self._key

    def references(self, page: int) -> int:
        """How often `page` is held."""
        return self._references[page]

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Prove that `tables` are all the holders, that free + used + cached = all, and that keys and pages agree."""
        held = Counter(page for table in tables for page in table)
        for page, count in enumerate(self._references):
            assert count == held[page], f"page {page} is held {held[page]} times but counted {count} times"
        assert len(set(self._free)) == len(self._free), "a page is free twice"
        kinds = (set(self._free), set(self._cached), set(held))
        assert sum(map(len, kinds)) == len(set.union(*kinds)) == self.num_pages, (
            f"{self.free} free + {len(held)} used + {self.cached} cached is not {self.num_pages}"
        )
        assert self._by_key == {key: page for page, key in self._key.items()}, "a key leads to another page"
        assert self._key.keys() == self._spans.keys(), "a page with a key says how it was run"
        assert not self._key.keys() & set(self._free), "a free page has a key"
        assert self._cached.keys() <= self._key.keys(), "a cached page has no key"

    def _forget(self, page: int) -> None:
        del self._by_key[self._key.pop(page)], self._spans[page]
