"""The page pool against a model of it, and the mistakes that `check` must find."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lockstep.engine.cache import PagePool

PAGES = 6


class Pool(RuleBasedStateMachine):
    """Holders are lists of pages; promises a number."""

    def __init__(self):
        super().__init__()
        self.pool = PagePool(PAGES)
        self.tables: list[list[int]] = []
        self.promised = 0

    @rule(count=st.integers(0, 3))
    def promise(self, count):
        if count <= self.pool.available:
            self.pool.promise(count)
            self.promised += count

    @precondition(lambda self: self.promised)
    @rule()
    def take(self):
        held = {page for table in self.tables for page in table}
        page = self.pool.take()
        self.promised -= 1
        assert page not in held
        self.tables.append([page])

    @precondition(lambda self: self.promised)
    @rule()
    def cancel(self):
        self.pool.cancel(1)
        self.promised -= 1

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def share(self, data):
        table = data.draw(st.sampled_from(self.tables))
        self.tables.append([self.pool.share(page) for page in table])

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data):
        table = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        for page in table:
            self.pool.release(page)

    @invariant()
    def holds(self):
        self.pool.check(self.tables, self.promised)
        used = len({page for table in self.tables for page in table})
        assert (self.pool.used, self.pool.free) == (used, PAGES - used)
        assert self.pool.available == PAGES - used - self.promised
        for page in range(PAGES):
            assert self.pool.references(page) == sum(table.count(page) for table in self.tables)


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_pages_are_handed_out_in_order_and_reused():
    pool = PagePool(3)
    pool.promise(3)
    assert [pool.take(), pool.take()] == [0, 1]
    pool.release(0)
    assert pool.take() == 0


@pytest.mark.parametrize(
    "misuse",
    [
        lambda pool: pool.take(),  # without a promise
        lambda pool: pool.promise(4),  # more than there are
        lambda pool: pool.cancel(1),  # never promised
        lambda pool: pool.release(0),  # not held
        lambda pool: pool.share(0),  # not held
    ],
)
def test_misuse_is_refused_and_changes_nothing(misuse):
    pool = PagePool(3)
    with pytest.raises(AssertionError):
        misuse(pool)
    pool.check([], 0)


def test_check_finds_a_lost_page_a_double_free_and_a_wrong_holder():
    pool = PagePool(3)
    pool.promise(2)
    page = pool.take()
    pool.check([[page]], 1)
    for tables, promised in (([], 1), ([[page], [page]], 1), ([[page]], 0), ([[2]], 1)):
        with pytest.raises(AssertionError):
            pool.check(tables, promised)
    pool._free.append(page)
    with pytest.raises(AssertionError):
        pool.check([[page]], 1)
