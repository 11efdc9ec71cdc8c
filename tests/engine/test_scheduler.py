"""The scheduler over a pretended cache in which every slot remembers the tokens it was computed from.

If a page is shared wrongly, freed too early, copied too late or written twice, a slot holds another prefix than the
completion that reads it, and the machine says so.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lockstep.core import Path, Request, SamplingParams
from lockstep.engine.cache import PagePool
from lockstep.engine.request import Job
from lockstep.engine.scheduler import Scheduler, Step, worst_case_pages


def make_job(name: str, num_prompt: int, n: int = 1, limit: int = 4) -> Job:
    ids = tuple((7 * i + len(name)) % 11 for i in range(num_prompt))
    return Job(Request(name, ids, SamplingParams(n=n, max_tokens=limit)), limit)


class Cache:
    """What each slot was computed from."""

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.slots: dict[tuple[int, int], tuple[int, ...] | None] = {}

    def run(self, step: Step) -> None:
        """Copies, then writes, then reads, as the forward does."""
        for source, target in step.copies:
            for at in range(self.page_size):
                self.slots[target, at] = self.slots.get((source, at))
        spans = list(zip(step.completions, step.starts, step.counts, strict=True))
        for completion, start, count in spans:
            for at in range(start, start + count):
                self.slots[self.place(completion, at)] = prefix(completion, at)
        for completion, start, count in spans:
            for at in range(start + count):
                assert self.slots[self.place(completion, at)] == prefix(completion, at), "a key of other tokens"

    def place(self, completion, at: int) -> tuple[int, int]:
        return completion.pages[at // self.page_size], at % self.page_size


def prefix(completion, at: int) -> tuple[int, ...]:
    return tuple(completion.tokens[: at + 1].tolist())


def drawers(step: Step):
    for completion, start, count in zip(step.completions, step.starts, step.counts, strict=True):
        if start + count == completion.length:
            yield from (completion,) if completion.job.forked else completion.job.completions


class Schedules(RuleBasedStateMachine):
    """Random arrivals, sizes, ends, aborts and failures."""

    @initialize(pages=st.integers(3, 12), size=st.integers(1, 4), budget=st.integers(2, 9), together=st.integers(1, 5))
    def begin(self, pages, size, budget, together):
        self.scheduler = Scheduler(PagePool(pages), size, budget, min(together, budget))
        self.cache = Cache(size)
        self.jobs: list[Job] = []
        self.seen: list[Job] = []  # in the order of their first row
        self.rows: dict[Job, int] = {}
        self.failed = False

    @rule(num_prompt=st.integers(1, 14), n=st.integers(1, 4), limit=st.integers(1, 6))
    def add(self, num_prompt, n, limit):
        s = self.scheduler
        n = min(n, s.max_completions)
        while worst_case_pages(num_prompt, n, limit, s.page_size) > s.pool.num_pages:
            num_prompt, n, limit = max(1, num_prompt - 1), max(1, n - 1), max(1, limit - 1)
        job = make_job(f"r{len(self.jobs)}", num_prompt, n, limit)
        s.add(job)
        self.jobs.append(job)

    @precondition(lambda self: self.scheduler.has_work)
    @rule(data=st.data())
    def step(self, data):
        self.run_step(lambda: data.draw(st.integers(0, 9)))

    @precondition(lambda self: self.scheduler.has_work)
    @rule()
    def fail(self):
        """The forward ran, or half of it, and what it drew was lost."""
        step = self.scheduler.plan()
        self.note(step)
        self.cache.run(step)
        self.failed = True

    @precondition(lambda self: any(not job.done for job in self.jobs))
    @rule(data=st.data())
    def abort(self, data):
        job = data.draw(st.sampled_from([job for job in self.jobs if not job.done]))
        self.scheduler.abort(job)
        assert job.done
        assert all(not c.pages and not c.promised for c in job.completions)

    def run_step(self, token):
        s = self.scheduler
        waiting = [c for c in s._active if c.length - c.computed == 1]
        step = s.plan()
        assert 0 < sum(step.counts) <= s.max_tokens
        assert min(step.counts) > 0
        assert set(waiting) <= set(step.completions), "a decode waited"
        self.cache.run(step)
        self.note(step)
        for completion, count in zip(step.completions, step.counts, strict=True):
            self.rows[completion.job] = self.rows.get(completion.job, 0) + count
        for completion in list(drawers(step)):
            value = token()
            completion.append(value, -1.0, 0, Path.DECODE, None)
            if value == 0:
                completion.finish_reason = "stop"
            elif completion.num_drawn == completion.job.limit:
                completion.finish_reason = "length"
        s.commit(step)

    def note(self, step):
        self.seen += [c.job for c in step.completions if c.job not in self.seen]

    @invariant()
    def holds(self):
        if not hasattr(self, "scheduler"):
            return
        self.scheduler.check()
        assert set(self.scheduler.jobs()) == {job for job in self.jobs if not job.done}
        order = [self.jobs.index(job) for job in self.seen]
        assert order == sorted(order), "a request overtook another"
        for job in self.jobs:
            reasons = {c.finish_reason for c in job.completions}
            if job.done and "abort" not in reasons and not self.failed:
                decoded = sum(c.num_drawn - 1 for c in job.completions)
                assert self.rows[job] == len(job.prompt) + decoded, "the prompt runs exactly once"

    def teardown(self):
        if hasattr(self, "scheduler"):
            for _ in range(1000):
                if not self.scheduler.has_work:
                    break
                self.run_step(lambda: 1)
                self.scheduler.check()
            assert all(job.done for job in self.jobs), "somebody starved"
            assert self.scheduler.pool.free == self.scheduler.pool.num_pages


TestSchedules = Schedules.TestCase
TestSchedules.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)


def finish_step(scheduler: Scheduler, step: Step, token: int = 5) -> None:
    for completion in list(drawers(step)):
        completion.append(token, -1.0, 0, Path.DECODE, None)
        if completion.num_drawn == completion.job.limit:
            completion.finish_reason = "length"
    scheduler.commit(step)


def test_a_long_prompt_is_cut_into_chunks_behind_the_decodes():
    s = Scheduler(PagePool(20), 4, max_tokens=8, max_completions=8)
    s.add(make_job("short", 3, limit=9))
    s.add(make_job("long", 17))
    step = s.plan()
    assert (step.starts, step.counts) == ((0, 0), (3, 5))
    finish_step(s, step)
    step = s.plan()
    assert (step.starts, step.counts) == ((3, 5), (1, 7))
    finish_step(s, step)
    step = s.plan()
    assert (step.starts, step.counts) == ((4, 12), (1, 5))


@pytest.mark.parametrize("num_prompt", [8, 9])
def test_samples_share_full_pages_and_copy_the_partial_one(num_prompt):
    s = Scheduler(PagePool(20), 4, max_tokens=16, max_completions=8)
    job = make_job("a", num_prompt, n=3, limit=4)
    s.add(job)
    finish_step(s, s.plan())
    first, *others = job.completions
    for other in others:
        assert other.pages[:2] == first.pages[:2]
        assert not set(other.pages[2:]) & set(first.pages[2:])
    step = s.plan()
    assert step.copies == (() if num_prompt == 8 else tuple((first.pages[2], c.pages[2]) for c in others))
    finish_step(s, step)
    assert s.plan().copies == ()
    s.check()


def test_samples_that_end_with_their_first_token_take_no_page():
    s = Scheduler(PagePool(8), 4, max_tokens=16, max_completions=8)
    s.add(make_job("a", 6, n=4, limit=1))
    finish_step(s, s.plan())
    assert (s.has_work, s.pool.free) == (False, 8)


def test_the_worst_case_is_promised_so_that_nobody_is_evicted():
    s = Scheduler(PagePool(6), 4, max_tokens=16, max_completions=8)
    s.add(make_job("a", 5, n=2, limit=4))  # 1 shared + 2 x 1 partial
    s.add(make_job("b", 4, n=1, limit=9))  # 3 pages
    s.add(make_job("c", 1, n=1, limit=1))  # would fit, but does not overtake
    s.add(make_job("d", 12, n=1, limit=13))  # 6 pages: the whole pool
    step = s.plan()
    assert [c.job.request.id for c in step.completions] == ["a", "b"]
    assert s.pool.available == 0
    while s.has_work:
        finish_step(s, s.plan())
        s.check()
    assert s.pool.free == 6


def test_the_number_of_completions_at_work_is_bounded():
    s = Scheduler(PagePool(50), 4, max_tokens=16, max_completions=4)
    s.add(make_job("a", 2, n=3, limit=2))
    s.add(make_job("b", 2, n=2, limit=2))
    finish_step(s, s.plan())
    assert {c.job.request.id for c in s.plan().completions} == {"a"}
    finish_step(s, s.plan())
    assert {c.job.request.id for c in s.plan().completions} == {"b"}


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_abort_gives_everything_back(steps):
    s = Scheduler(PagePool(10), 4, max_tokens=4, max_completions=4)
    job = make_job("a", 6, n=2, limit=4)
    s.add(job)
    for _ in range(steps):
        finish_step(s, s.plan())
    s.abort(job)
    s.check()
    assert (s.has_work, s.pool.free, s.pool.promised) == (False, 10, 0)
    s.abort(job)  # again: nothing happens
    s.check()


def test_check_finds_a_page_with_two_writers():
    s = Scheduler(PagePool(10), 4, max_tokens=16, max_completions=4)
    job = make_job("a", 6, n=2)
    s.add(job)
    finish_step(s, s.plan())
    first, second = job.completions
    s._release(second)
    second.pages = [s.pool.share(page) for page in first.pages]
    s._admitted += 1
    with pytest.raises(AssertionError, match="would write"):
        s.check()


@pytest.mark.parametrize(
    ("num_prompt", "n", "limit", "pages"), [(1, 1, 1, 1), (4, 1, 1, 1), (4, 1, 2, 2), (4, 3, 5, 4), (5, 3, 4, 4)]
)
def test_worst_case(num_prompt, n, limit, pages):
    assert worst_case_pages(num_prompt, n, limit, 4) == pages
    s = Scheduler(PagePool(pages), 4, max_tokens=16, max_completions=4)
    s.add(make_job("a", num_prompt, n, limit))
    used = 0
    while s.has_work:
        step = s.plan()
        used = max(used, s.pool.used)
        finish_step(s, step)
    assert used == pages, "the worst case is met, not only bounded"
    assert np.all([s.pool.references(page) == 0 for page in range(pages)])
