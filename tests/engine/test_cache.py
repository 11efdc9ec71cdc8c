"""The page pool against a model of it, and the mistakes that `check` must find."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lockstep.core import Span
from lockstep.engine.cache import PagePool, page_key, root_key

PAGES = 6


class Pool(RuleBasedStateMachine):
    """Holders are lists of pages; `content` is what we believe a page with a key to hold."""

    def __init__(self):
        super().__init__()
        self.pool = PagePool(PAGES)
        self.tables: list[list[int]] = []
        self.content: dict[int, bytes] = {}
        self.idle: list[int] = []  # cached pages, the longest released first

    @precondition(lambda self: self.pool.available)
    @rule()
    def take(self):
        held = {page for table in self.tables for page in table}
        free = self.pool.free
        page = self.pool.take()
        assert page not in held
        if not free:
            assert page == self.idle[0], "the least recently used gives way"
            self.idle.remove(page)
            del self.content[page]
        self.tables.append([page])

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def share(self, data):
        table = data.draw(st.sampled_from(self.tables))
        self.tables.append([self.pool.hold(page) for page in table])

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), key=st.binary(min_size=1, max_size=1))
    def register(self, data, key):
        page = data.draw(st.sampled_from(self.tables))[0]
        self.pool.register(page, key, (Span(0, 1, key[0]),))
        if page not in self.content and key not in self.content.values():
            self.content[page] = key

    @precondition(lambda self: self.content)
    @rule(data=st.data())
    def find_and_hold(self, data):
        page, key = data.draw(st.sampled_from(sorted(self.content.items())))
        assert self.pool.find(key) == page
        assert self.pool.spans(page) == (Span(0, 1, key[0]),)
        self.tables.append([self.pool.hold(page)])
        if page in self.idle:
            self.idle.remove(page)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data):
        table = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        for page in table:
            self.pool.release(page)
            if page in self.content and not any(page in other for other in self.tables):
                self.idle.append(page)

    @rule()
    def forget_all(self):
        self.pool.forget_all()
        self.content, self.idle = {}, []

    @invariant()
    def holds(self):
        self.pool.check(self.tables)
        used = len({page for table in self.tables for page in table})
        assert (self.pool.used, self.pool.cached) == (used, len(self.idle))
        assert self.pool.available == PAGES - used
        for page in range(PAGES):
            count = sum(table.count(page) for table in self.tables)
            assert self.pool.references(page) == count
            assert self.pool.writable(page) == (count == 1 and page not in self.content)
        for byte in range(256):
            found = self.pool.find(bytes([byte]))
            assert (found is None) == (bytes([byte]) not in self.content.values())


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_pages_are_handed_out_in_order_and_reused():
    pool = PagePool(3)
    assert [pool.take(), pool.take()] == [0, 1]
    pool.release(0)
    assert pool.take() == 0


def test_a_page_outlives_its_holder_only_with_a_key():
    pool = PagePool(2)
    first, second = pool.take(), pool.take()
    pool.register(first, b"k", (Span(0, 4, 0),))
    pool.release(first)
    pool.release(second)
    assert (pool.free, pool.cached, pool.find(b"k")) == (1, 1, first)
    assert [pool.take(), pool.take()] == [second, first], "empty ones first"
    assert pool.find(b"k") is None


@pytest.mark.parametrize(
    "misuse",
    [
        lambda pool: [pool.take() for _ in range(4)],  # more than there are
        lambda pool: pool.release(0),  # not held
        lambda pool: pool.hold(0),  # empty
        lambda pool: pool.register(0, b"k", ()),  # not held
    ],
)
def test_misuse_is_refused(misuse):
    with pytest.raises(AssertionError):
        misuse(PagePool(3))


def test_check_finds_a_lost_page_a_double_free_and_a_wrong_holder():
    pool = PagePool(3)
    page = pool.take()
    pool.check([[page]])
    for tables in ([], [[page], [page]], [[2]]):
        with pytest.raises(AssertionError):
            pool.check(tables)
    pool._free.append(page)
    with pytest.raises(AssertionError):
        pool.check([[page]])


def test_check_finds_a_key_that_leads_astray():
    pool = PagePool(3)
    page = pool.take()
    pool.register(page, b"k", (Span(0, 4, 0),))
    pool._by_key[b"k"] = page + 1
    with pytest.raises(AssertionError, match="leads to another page"):
        pool.check([[page]])


@given(st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=2), min_size=1, max_size=4), st.text(max_size=3))
def test_a_key_says_the_salt_and_every_token_before(pages, salt):
    def chain(start: bytes, tokens) -> bytes:
        for page in tokens:
            start = page_key(start, np.array(page, np.int32))
        return start

    key = chain(root_key(salt), pages)
    assert key == chain(root_key(salt), pages)
    assert key != chain(root_key(salt + "x"), pages)
    changed = [[page[0] + 1, *page[1:]] if i == 0 else page for i, page in enumerate(pages)]
    assert key != chain(root_key(salt), changed)
    assert key != chain(root_key(salt), [*pages, [0, 0]])
    if len(pages) > 1:
        joined = [pages[0] + pages[1], *pages[2:]]
        assert key != chain(root_key(salt), joined), "where one page ends and the next begins is part of it"
