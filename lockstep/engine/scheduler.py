"""What each engine step computes: decodes first, then prompts in chunks, under one budget of tokens.

In: jobs. Out: a `Step` for the engine to run and then `commit`. Nothing of ours is computed here, and no tensor.

    add -> waiting --admit (prefix found in cache)--> active: prompt in chunks --fork--> n completions decode -> gone
              ^                                         |
              +-- preempt: pages taken away, run again -+   when no page is left, the latest arrival first

Order of arrival is the order of everything: nobody overtakes, so nobody starves, and the oldest is never preempted; as
every completion fits into an empty cache, it always gets through. A step that failed may be planned again: keys are
written twice with the same bits, pages are taken once.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field

from lockstep.core import Span
from lockstep.engine.cache import PagePool, page_key, root_key
from lockstep.engine.request import Completion, Job
from lockstep.weight_update import UpdatePolicy


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """Completion i runs `counts[i]` tokens from position `starts[i]`, after the page copies (source, target)."""

    completions: tuple[Completion, ...]
    starts: tuple[int, ...]
    counts: tuple[int, ...]
    copies: tuple[tuple[int, int], ...]


@dataclass(slots=True)
class _Plan:
    """A step in the making: tokens by completion, and what is left of the budget."""

    budget: int
    counts: dict[Completion, int] = field(default_factory=dict)
    preempted: set[Completion] = field(default_factory=set)


class Scheduler:
    """Continuous batching over a page pool; `max_tokens` rows a step, `max_completions` at work together."""

    def __init__(self, pool: PagePool, page_size: int, max_tokens: int, max_completions: int) -> None:
        assert max_completions <= max_tokens, "every active completion must fit into one step"
        self.pool = pool
        self.page_size = page_size
        self.max_tokens = max_tokens
        self.max_completions = max_completions
        self.num_preemptions = 0
        self.num_hits = 0  # tokens that were found in the cache
        self._root = root_key("")
        self._version = self._oldest = 0
        self._arrivals = 0
        self._waiting: list[Completion] = []  # in order; of a job that has not forked only the first completion
        self._active: list[Completion] = []  # in order
        self._copies: dict[int, int] = {}  # target page -> source page, held until the copy is made

    @property
    def has_work(self) -> bool:
        return bool(self._active or self._waiting)

    def jobs(self) -> Iterator[Job]:
        """Jobs in flight, each once, in the order of arrival."""
        everybody = sorted([*self._active, *self._waiting], key=lambda completion: completion.order)
        yield from dict.fromkeys(completion.job for completion in everybody)

    def add(self, job: Job) -> None:
        """Queue a job. Each of its completions must fit into an empty engine: see `Limits.check`."""
        assert self._pages(len(job.prompt) + job.limit - 1) <= self.pool.num_pages, "refused at the door, not here"
        assert len(job.completions) <= self.max_completions, "refused at the door, not here"
        self._arrivals += 1
        job.arrival = self._arrivals
        self._waiting.append(job.completions[0])

    def plan(self) -> Step:
        """Choose the tokens of the next step and take their pages; empty only if there is no work."""
        plan = _Plan(self.max_tokens)
        decodes = [c for c in self._active if c.length - c.computed == 1]
        for completion in [*decodes, *(c for c in self._active if c.length - c.computed > 1)]:
            self._include(completion, plan)
        while plan.budget > 0 and self._waiting and not plan.preempted:
            completion = self._waiting[0]
            if not self._admit(completion):
                break
            self._include(completion, plan)
        rows = [completion for completion in self._active if completion in plan.counts]
        return Step(
            tuple(rows),
            tuple(completion.computed for completion in rows),
            tuple(plan.counts[completion] for completion in rows),
            tuple((source, target) for target, source in self._copies.items()),
        )

    def commit(self, step: Step) -> None:
        """The step has run and the drawn tokens are appended: keep its keys, fork full prompts, drop what finished."""
        for source, target in step.copies:
            del self._copies[target]
            self.pool.release(source)
        for completion, start, count in zip(step.completions, step.starts, step.counts, strict=True):
            completion.computed = start + count
            completion.ran(start, start + count, self._version)
            completion.recomputing &= completion.computed < completion.length - 1
            self._name_pages(completion)
            if not completion.job.forked and completion.computed >= completion.num_prompt:
                self._fork(completion)
        self._drop_finished()

    def new_weights(self, version: int, salt: str, policy: UpdatePolicy) -> None:
        """From the next step on, keys are written at `version`; under new weights prefixes are named after `salt`."""
        self._version, self._oldest = version, policy.oldest_keys
        if policy.kv == "keep" or (policy.kv == "salt" and root_key(salt) == self._root):
            return
        self._root = root_key(salt)
        self.pool.forget_all()
        for completion in self._active[::-1]:
            if policy.kv == "recompute":
                self._preempt(completion)
            elif completion.computed:
                completion.page_keys = None

    def abort(self, job: Job) -> None:
        """Take a job out, wherever it is; what it has drawn stays with it. Finished completions are left alone."""
        for completion in job.completions:
            if completion.finish_reason is None:
                completion.finish_reason = "abort"
        self._waiting = [completion for completion in self._waiting if completion.job is not job]
        self._drop_finished()

    def check(self) -> None:
        """Prove that pages and page tables agree with each other, and that nobody writes where another reads."""
        self.pool.check([*(c.pages for c in self._active), list(self._copies.values())])
        assert self._room() >= 0, f"more than {self.max_completions} completions at work"
        for queue in (self._active, self._waiting):
            assert queue == sorted(queue, key=_order), "a queue is out of order"
        for completion in self._waiting:
            assert not completion.pages and not completion.computed, "who waits holds nothing"
        everybody = [*self._active, *self._waiting]
        assert len({id(completion) for completion in everybody}) == len(everybody), "a completion is queued twice"
        for completion in self._active:
            who = f"{completion.job.request.id}/{completion.index}"
            assert completion.finish_reason is None, f"{who} is finished and active"
            assert completion.computed < completion.length, f"{who} has nothing to run"
            assert len(completion.pages) >= self._pages(completion.computed), f"{who} lacks pages"
            assert (completion.layout[-1].end if completion.layout else 0) == completion.computed, f"{who}: layout"
            for page in completion.pages[completion.computed // self.page_size :]:
                copied = page in self._copies.values()  # copies are made before anything is written
                assert copied or self.pool.writable(page), f"{who} would write into page {page}, which others read"

    def _pages(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    def _room(self) -> int:
        """Completions that may still start; a job that has not forked needs room for all of its own."""
        unforked = sum(len(c.job.completions) - 1 for c in self._active if not c.job.forked)
        return self.max_completions - len(self._active) - unforked

    def _include(self, completion: Completion, plan: _Plan) -> None:
        """Give `completion` what it can run of the budget, and the pages for it, unless it has just lost its own."""
        count = min(completion.length - completion.computed, plan.budget)
        if count <= 0 or completion in plan.preempted:
            return
        if self._secure(completion, completion.computed + count, plan):
            plan.counts[completion] = count
            plan.budget -= count

    def _secure(self, completion: Completion, tokens: int, plan: _Plan) -> bool:
        """Take the missing pages, if need be from those who came last; False if that is `completion` itself."""
        while len(completion.pages) < self._pages(tokens):
            if self.pool.available:
                completion.pages.append(self.pool.take())
                continue
            last = self._active[-1]
            plan.budget += plan.counts.pop(last, 0)
            plan.preempted.add(last)
            self._preempt(last)
            if last is completion:
                return False
        return True

    def _preempt(self, completion: Completion) -> None:
        self._active.remove(completion)
        self._release(completion)
        completion.restart()
        if not completion.job.forked:
            completion.job.prompt_logprobs.clear()
            completion.job.prompt_versions.clear()
        bisect.insort(self._waiting, completion, key=_order)
        self.num_preemptions += 1

    def _admit(self, completion: Completion) -> bool:
        """Make the first in the queue active, over the keys of its beginning that the cache holds, if it has room."""
        job = completion.job
        if self._room() < (1 if job.forked else len(job.completions)):
            return False
        keys, pages = self._find(completion)
        taken_from_cache = sum(self.pool.references(page) == 0 for page in pages)
        if self.pool.available - taken_from_cache < self._pages(completion.length) - len(pages):
            return False
        self._waiting.remove(completion)
        completion.page_keys = keys
        for page in pages:
            completion.pages.append(self.pool.hold(page))
            for span in self.pool.spans(page):
                completion.ran(span.start, span.end, span.version)
        completion.hit = completion.computed = len(pages) * self.page_size
        self.num_hits += completion.hit
        bisect.insort(self._active, completion, key=_order)
        return True

    def _find(self, completion: Completion) -> tuple[list[bytes], list[int]]:
        """Keys and pages of the longest known beginning. The last token always runs: its row decides the next.

        Who runs again may only find keys of the present weights, so that versions rise along its spans.
        """
        keys: list[bytes] = []
        pages: list[int] = []
        if completion.job.request.params.prompt_logprobs and not completion.job.forked:
            return keys, pages  # every row of the prompt is wanted
        while len(pages) < (completion.length - 1) // self.page_size:
            key = self._next_key(completion, keys)
            page, oldest = self.pool.find(key), self._version if completion.past else self._oldest
            if page is None or any(span.version < oldest for span in self.pool.spans(page)):
                break
            keys.append(key)
            pages.append(page)
        return keys, pages

    def _next_key(self, completion: Completion, keys: list[bytes]) -> bytes:
        start = len(keys) * self.page_size
        return page_key(keys[-1] if keys else self._root, completion.tokens[start : start + self.page_size])

    def _name_pages(self, completion: Completion) -> None:
        keys, size = completion.page_keys, self.page_size
        while keys is not None and len(keys) < completion.computed // size:
            at = len(keys)
            follows = not keys or self.pool.find(keys[-1]) == completion.pages[at - 1]
            keys.append(self._next_key(completion, keys))
            if follows:  # else its keys were written over another page than the one that is found before it
                spans = _within(completion.layout, at * size, (at + 1) * size)
                self.pool.register(completion.pages[at], keys[at], spans)

    def _fork(self, first: Completion) -> None:
        """Whoever goes on shares the full pages of the prompt, and gets a copy of the last one if it is partial.

        Who gets no page for the copy runs its prompt again, when there is room.
        """
        first.job.forked = True
        full, partial = divmod(first.num_prompt, self.page_size)
        for completion in first.job.completions[1:]:
            completion.layout, completion.hit = list(first.layout), first.hit
            if completion.finish_reason is not None:
                continue
            if partial and not self.pool.available:
                completion.restart()
                bisect.insort(self._waiting, completion, key=_order)
                continue
            completion.pages = [self.pool.hold(page) for page in first.pages[:full]]
            if partial:
                completion.pages.append(self.pool.take())
                self._copies[completion.pages[full]] = self.pool.hold(first.pages[full])
            completion.page_keys = None if first.page_keys is None else list(first.page_keys)
            completion.computed = first.num_prompt
            bisect.insort(self._active, completion, key=_order)

    def _drop_finished(self) -> None:
        finished = [completion for completion in self._active if completion.finish_reason is not None]
        for completion in finished:
            self._release(completion)
            completion.pages = []
        if finished:
            self._active = [completion for completion in self._active if completion.finish_reason is None]

    def _release(self, completion: Completion) -> None:
        """Give its pages back, the last one first, so that a prefix outlives what follows it."""
        for page in reversed(completion.pages):
            if page in self._copies:  # a copy into it that nobody needs any more
                self.pool.release(self._copies.pop(page))
            self.pool.release(page)


def _order(completion: Completion) -> tuple[int, int]:
    return completion.order


def _within(layout: list[Span], start: int, end: int) -> tuple[Span, ...]:
    """The parts of a layout between two positions."""
    cut = (Span(max(span.start, start), min(span.end, end), span.version) for span in layout)
    return tuple(span for span in cut if span.start < span.end)
