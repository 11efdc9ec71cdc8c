"""The scheduler over a pretended cache in which every slot remembers the tokens and weights it was computed from.

If a page is shared wrongly, freed too early, copied too late, written twice or found under the wrong key, a slot holds
another history than the completion that reads it, and the machine says so.
"""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lockstep.core import Path, Request, SamplingParams, Span
from lockstep.engine.cache import PagePool
from lockstep.engine.request import Completion, Job
from lockstep.engine.scheduler import Scheduler, Step
from lockstep.weight_update import UpdatePolicy


def make_job(name: str, num_prompt: int, n: int = 1, limit: int = 4, *, salt: int | None = None, **params) -> Job:
    """Prompts of one salt share a beginning, so that the prefix cache has something to find."""
    ids = tuple((7 * i + (len(name) if salt is None else salt)) % 11 for i in range(num_prompt))
    return Job(Request(name, ids, SamplingParams(n=n, max_tokens=limit, **params)), limit)


class Cache:
    """What each slot was computed from: (token, weight version) of every position up to its own."""

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.slots: dict[tuple[int, int], tuple[tuple[int, int], ...] | None] = {}

    def run(self, step: Step, version: int) -> None:
        """Copies, then writes, then reads, as the forward does."""
        for source, target in step.copies:
            for at in range(self.page_size):
                self.slots[target, at] = self.slots.get((source, at))
        spans = list(zip(step.completions, step.starts, step.counts, strict=True))
        for completion, start, count in spans:
            self.read(completion, start)
            for at in range(start, start + count):
                before = self.slots[self.place(completion, at - 1)] if at else ()
                assert before is not None, "a slot before it is empty"
                self.slots[self.place(completion, at)] = (*before, (int(completion.tokens[at]), version))
        for completion, start, count in spans:
            self.read(completion, start, extra=(count, version))

    def read(self, completion: Completion, until: int, extra: tuple[int, int] = (0, 0)) -> None:
        """Every key must be of the completion's own tokens, run at the weights that its layout says."""
        versions = [span.version for span in completion.layout for _ in range(span.start, span.end)]
        expected = zip(completion.tokens, [*versions[:until], *[extra[1]] * extra[0]], strict=False)
        whole = tuple((int(token), version) for token, version in expected)
        assert len(whole) == until + extra[0], "the layout covers what is computed"
        for at in range(until + extra[0]):
            assert self.slots[self.place(completion, at)] == whole[: at + 1], "a key of other tokens or weights"

    def place(self, completion: Completion, at: int) -> tuple[int, int]:
        return completion.pages[at // self.page_size], at % self.page_size


def drawers(step: Step):
    for completion, start, count in zip(step.completions, step.starts, step.counts, strict=True):
        if start + count == completion.length:
            yield from (completion,) if completion.job.forked else completion.job.completions


def pages_of(num_prompt: int, limit: int, page_size: int) -> int:
    return -(-(num_prompt + limit - 1) // page_size)


class Schedules(RuleBasedStateMachine):
    """Random arrivals, sizes, shared beginnings, memory pressure, ends, aborts, failures, and new weights."""

    @initialize(pages=st.integers(3, 12), size=st.integers(1, 4), budget=st.integers(2, 9), together=st.integers(1, 5))
    def begin(self, pages, size, budget, together):
        self.scheduler = Scheduler(PagePool(pages), size, budget, min(together, budget))
        self.cache = Cache(size)
        self.version = 0
        self.jobs: list[Job] = []
        self.seen: list[Job] = []  # in the order of their first row
        self.drawn: dict[Completion, list[int]] = {}  # the version at which each token was drawn

    @rule(num_prompt=st.integers(1, 14), n=st.integers(1, 4), limit=st.integers(1, 6), salt=st.integers(0, 2))
    def add(self, num_prompt, n, limit, salt):
        s = self.scheduler
        while pages_of(num_prompt, limit, s.page_size) > s.pool.num_pages:
            num_prompt, limit = max(1, num_prompt - 1), max(1, limit - 1)
        name = f"r{len(self.jobs)}"
        job = make_job(name, num_prompt, min(n, s.max_completions), limit, salt=salt, prompt_logprobs=salt == 2)
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
        self.cache.run(step, self.version)

    @precondition(lambda self: any(not job.done for job in self.jobs))
    @rule(data=st.data())
    def abort(self, data):
        job = data.draw(st.sampled_from([job for job in self.jobs if not job.done]))
        self.scheduler.abort(job)
        assert job.done
        assert all(not c.pages for c in job.completions)

    @rule(kv=st.sampled_from(["keep", "salt", "recompute"]), same=st.booleans())
    def new_weights(self, kv, same):
        self.version += not same
        self.scheduler.new_weights(self.version, str(self.version), UpdatePolicy("keep", kv))

    def run_step(self, token):
        s = self.scheduler
        step = s.plan()
        assert 0 < sum(step.counts) <= s.max_tokens
        assert min(step.counts) > 0
        waiting = [c for c in s._active if c.length - c.computed == 1 and c not in step.completions]
        assert not waiting, "a decode waited"
        self.cache.run(step, self.version)
        self.note(step)
        for completion in list(drawers(step)):
            value = token()
            completion.append(value, -1.0, self.version, Path.DECODE, None)
            self.drawn.setdefault(completion, []).append(self.version)
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
        for completion in self.scheduler._active:
            self.cache.read(completion, completion.computed if not self.pending(completion) else 0)
        for job in self.jobs:
            for completion in job.completions:
                self.explains(completion)

    def pending(self, completion):
        return any(page in self.scheduler._copies for page in completion.pages)

    def explains(self, completion):
        """The spans say for every drawn token at which weights its row ran, and versions rise."""
        spans = completion.spans
        assert [s.version for s in spans] == sorted(s.version for s in spans), "versions rise"
        for t, version in enumerate(self.drawn.get(completion, [])):
            at = completion.num_prompt + t - 1
            own = [span for span in spans if span.version == version and span.start <= at < span.end]
            assert own, f"no span of version {version} runs position {at}: {spans}"

    def teardown(self):
        if hasattr(self, "scheduler"):
            for _ in range(1000):
                if not self.scheduler.has_work:
                    break
                self.run_step(lambda: 1)
                self.scheduler.check()
            assert all(job.done for job in self.jobs), "somebody starved"
            pool = self.scheduler.pool
            assert pool.free + pool.cached == pool.num_pages, "a page leaked"


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
    assert (s.has_work, s.pool.free, s.pool.cached) == (False, 7, 1)


def run_all(s: Scheduler) -> None:
    for _ in range(200):
        if not s.has_work:
            return
        finish_step(s, s.plan())
        s.check()
    raise AssertionError("it never ends")


def test_who_came_last_gives_its_pages_to_who_came_first():
    s = Scheduler(PagePool(4), 4, max_tokens=16, max_completions=8)
    early, late = make_job("early", 7, limit=9), make_job("late", 7, limit=9, salt=9)
    s.add(early)
    s.add(late)
    finish_step(s, s.plan())
    assert all(len(job.completions[0].pages) == 2 for job in (early, late))
    finish_step(s, s.plan())
    step = s.plan()  # position 8 needs a third page
    assert step.completions == early.completions
    assert late.completions[0].recomputing
    assert s.num_preemptions == 1
    run_all(s)
    assert late.completions[0].num_drawn == 9
    assert late.completions[0].spans == (Span(0, 15, 0),), "the same weights: as if nothing had happened"


def test_a_beginning_that_is_known_does_not_run_again():
    s = Scheduler(PagePool(12), 4, max_tokens=32, max_completions=8)
    s.add(make_job("first", 10, salt=1))
    run_all(s)
    s.add(make_job("second", 14, salt=1))
    step = s.plan()
    assert (step.starts, step.counts) == ((8,), (6,))
    assert s.num_hits == 8
    finish_step(s, step)
    assert step.completions[0].cached[0]
    assert step.completions[0].spans == (Span(0, 14, 0),)


def test_a_prompt_whose_logprobs_are_wanted_runs_whole():
    s = Scheduler(PagePool(12), 4, max_tokens=32, max_completions=8)
    s.add(make_job("first", 10, salt=1))
    run_all(s)
    s.add(make_job("second", 14, salt=1, prompt_logprobs=True))
    assert s.plan().counts == (14,)


@pytest.mark.parametrize(("kv", "hits"), [("keep", 8), ("salt", 0), ("recompute", 0)])
def test_only_keep_lets_new_requests_find_keys_of_old_weights(kv, hits):
    s = Scheduler(PagePool(12), 4, max_tokens=32, max_completions=8)
    s.add(make_job("first", 10, salt=1))
    run_all(s)
    s.new_weights(1, "other", UpdatePolicy("keep", kv))
    s.add(make_job("second", 14, salt=1))
    finish_step(s, s.plan())
    assert s.num_hits == hits
    spans = next(s.jobs()).completions[0].spans
    assert spans == ((Span(0, 8, 0), Span(8, 14, 1)) if hits else (Span(0, 14, 1),))


def test_an_identity_update_keeps_the_prefix_cache():
    s = Scheduler(PagePool(12), 4, max_tokens=32, max_completions=8)
    s.new_weights(0, "same", UpdatePolicy())
    s.add(make_job("first", 10, salt=1))
    run_all(s)
    s.new_weights(0, "same", UpdatePolicy())
    s.add(make_job("second", 14, salt=1))
    s.plan()
    assert s.num_hits == 8


def test_kept_prefixes_that_are_too_old_are_not_found():
    s = Scheduler(PagePool(12), 4, max_tokens=32, max_completions=8)
    s.add(make_job("first", 10, salt=1))
    run_all(s)
    s.new_weights(1, "1", UpdatePolicy("keep", "keep", oldest_keys=1))
    s.add(make_job("second", 14, salt=1))
    assert s.plan().counts == (14,)


def test_a_page_is_found_only_after_the_page_it_was_written_over():
    """Under `keep` a beginning may have run at two weights: the later second page has other keys before it."""
    s = Scheduler(PagePool(12), 4, max_tokens=8, max_completions=8)
    late = make_job("late", 9, salt=1)
    s.add(make_job("early", 5, limit=1, salt=1))
    s.add(late)
    finish_step(s, s.plan())  # all of early, 3 of late: neither has found the other's page
    s.new_weights(1, "1", UpdatePolicy("keep", "keep"))
    finish_step(s, s.plan())  # late: positions 3 to 8, so its first page is not the one that has the key
    run_all(s)
    third = make_job("third", 9, salt=1)
    s.add(third)
    s.plan()
    assert third.completions[0].spans == (Span(0, 4, 0),), "early's page, and nothing that late wrote"


@pytest.mark.parametrize(
    ("kv", "spans"),
    [("keep", (Span(0, 6, 0), Span(6, 7, 1))), ("recompute", (Span(0, 6, 0), Span(0, 7, 1)))],
)
def test_spans_say_how_a_completion_lived_through_an_update(kv, spans):
    s = Scheduler(PagePool(12), 4, max_tokens=32, max_completions=8)
    job = make_job("a", 6)
    s.add(job)
    finish_step(s, s.plan())
    s.new_weights(1, "1", UpdatePolicy("keep", kv))
    finish_step(s, s.plan())
    assert job.completions[0].spans == spans


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
    assert (s.has_work, s.pool.used, s.pool.available) == (False, 0, 10)
    s.abort(job)  # again: nothing happens
    s.check()


def test_check_finds_a_page_with_two_writers():
    s = Scheduler(PagePool(10), 4, max_tokens=16, max_completions=4)
    job = make_job("a", 6, n=2)
    s.add(job)
    finish_step(s, s.plan())
    first, second = job.completions
    s._release(second)
    second.pages = [s.pool.hold(page) for page in first.pages]
    with pytest.raises(AssertionError, match="would write"):
        s.check()
