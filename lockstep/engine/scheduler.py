"""What each engine step computes: decodes first, then prompts in chunks, under one budget of tokens.

In: jobs. Out: a `Step` for the engine to run and then `commit`. Nothing of ours is computed here, and no tensor.

    add --> waiting --admit (all pages promised)--> active: prompt in chunks --fork--> n completions decode --> gone

Order of arrival is the order of everything, and nobody overtakes, so nobody starves. A step that failed may be planned
again: keys are written twice with the same bits, pages are taken once.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass

from lockstep.engine.cache import PagePool
from lockstep.engine.request import Completion, Job


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """Completion i runs `counts[i]` tokens from position `starts[i]`, after the page copies (source, target)."""

    completions: tuple[Completion, ...]
    starts: tuple[int, ...]
    counts: tuple[int, ...]
    copies: tuple[tuple[int, int], ...]


class Scheduler:
    """Continuous batching over a page pool; `max_tokens` rows a step, `max_completions` at work together."""

    def __init__(self, pool: PagePool, page_size: int, max_tokens: int, max_completions: int) -> None:
        assert max_completions <= max_tokens, "every active completion must fit into one step"
        self.pool = pool
        self.page_size = page_size
        self.max_tokens = max_tokens
        self.max_completions = max_completions
        self._waiting: deque[Job] = deque()
        self._active: list[Completion] = []
        self._admitted = 0  # unfinished completions of admitted jobs, forked or not
        self._copies: dict[int, int] = {}  # target page -> source page, held until the copy is made

    @property
    def has_work(self) -> bool:
        return bool(self._active or self._waiting)

    def jobs(self) -> Iterator[Job]:
        """Jobs in flight, each once, in the order of arrival."""
        yield from dict.fromkeys(completion.job for completion in self._active)
        yield from self._waiting

    def add(self, job: Job) -> None:
        """Queue a job. It must fit into an empty engine: see `Limits.check`."""
        assert self._worst_case(job) <= self.pool.num_pages, "refused at the door, not here"
        assert len(job.completions) <= self.max_completions, "refused at the door, not here"
        self._waiting.append(job)

    def plan(self) -> Step:
        """Choose the tokens of the next step and take their pages; empty only if there is no work."""
        budget = self.max_tokens
        rows: list[tuple[Completion, int]] = []
        prompts: list[Completion] = []
        for completion in self._active:
            if completion.length - completion.computed == 1:
                rows.append((completion, 1))
                budget -= 1
            else:
                prompts.append(completion)
        for completion in prompts:
            budget -= self._chunk(completion, budget, rows)
        while budget > 0 and self._waiting and self._fits(self._waiting[0]):
            budget -= self._chunk(self._admit(self._waiting.popleft()), budget, rows)
        for completion, count in rows:
            self._grow(completion, completion.computed + count)
        return Step(
            tuple(completion for completion, _ in rows),
            tuple(completion.computed for completion, _ in rows),
            tuple(count for _, count in rows),
            tuple((source, target) for target, source in self._copies.items()),
        )

    def commit(self, step: Step) -> None:
        """The step has run and the drawn tokens are appended: keep its keys, fork full prompts, drop what finished."""
        for source, target in step.copies:
            del self._copies[target]
            self.pool.release(source)
        for completion, start, count in zip(step.completions, step.starts, step.counts, strict=True):
            completion.computed = start + count
            if not completion.job.forked and completion.computed >= completion.num_prompt:
                self._fork(completion)
        if any(completion.finish_reason is not None for completion in step.completions):
            self._drop_finished()

    def abort(self, job: Job) -> None:
        """Take a job out, wherever it is; what it has drawn stays with it. Finished completions are left alone."""
        stopped = [completion for completion in job.completions if completion.finish_reason is None]
        for completion in stopped:
            completion.finish_reason = "abort"
        if job in self._waiting:
            self._waiting.remove(job)
            return
        for completion in stopped:
            if completion not in self._active:  # the prompt is not whole yet: no pages, only promises
                self._release(completion)
        self._drop_finished()

    def check(self) -> None:
        """Prove that pages, promises and page tables agree with each other."""
        admitted = [c for job in dict.fromkeys(c.job for c in self._active) for c in job.completions]
        unfinished = [c for c in admitted if c.finish_reason is None]
        tables = [*(c.pages for c in self._active), list(self._copies.values())]
        self.pool.check(tables, sum(c.promised for c in admitted))
        assert self._admitted == len(unfinished), f"{self._admitted} admitted, {len(unfinished)} found"
        assert self._admitted <= self.max_completions, f"{self._admitted} of {self.max_completions} completions"
        sources = Counter(self._copies.values())
        for completion in self._active:
            who = f"{completion.job.request.id}/{completion.index}"
            assert completion.finish_reason is None, f"{who} is finished and active"
            assert completion.computed < completion.length, f"{who} has nothing to run"
            assert len(completion.pages) >= self._pages(completion.computed), f"{who} lacks pages"
            for page in completion.pages[completion.computed // self.page_size :]:
                holders = self.pool.references(page) - sources[page]  # copies are made before anything is written
                assert holders == 1, f"{who} would write into page {page}, held {holders} times"

    def _pages(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    def _worst_case(self, job: Job) -> int:
        return worst_case_pages(len(job.prompt), len(job.completions), job.limit, self.page_size)

    def _fits(self, job: Job) -> bool:
        room = self.max_completions - self._admitted
        return len(job.completions) <= room and self._worst_case(job) <= self.pool.available

    def _admit(self, job: Job) -> Completion:
        """Promise the pages of the worst case. The first completion fills the prompt for all of them."""
        self.pool.promise(self._worst_case(job))
        total = self._pages(len(job.prompt) + job.limit - 1)
        shared = len(job.prompt) // self.page_size
        for completion in job.completions:
            completion.promised = total if completion.index == 0 else total - shared
        self._admitted += len(job.completions)
        self._active.append(job.completions[0])
        return job.completions[0]

    def _chunk(self, completion: Completion, budget: int, rows: list[tuple[Completion, int]]) -> int:
        count = min(completion.length - completion.computed, budget)
        if count > 0:
            rows.append((completion, count))
        return count

    def _grow(self, completion: Completion, tokens: int) -> None:
        while len(completion.pages) < self._pages(tokens):
            completion.pages.append(self.pool.take())
            completion.promised -= 1

    def _fork(self, first: Completion) -> None:
        """Whoever goes on shares the full pages of the prompt, and gets a copy of the last one if it is partial."""
        job = first.job
        job.forked = True
        full, partial = divmod(first.num_prompt, self.page_size)
        for completion in job.completions[1:]:
            if completion.finish_reason is not None:
                self._release(completion)
                continue
            completion.pages = [self.pool.share(page) for page in first.pages[:full]]
            if partial:
                self._grow(completion, first.num_prompt)
                self._copies[completion.pages[full]] = self.pool.share(first.pages[full])
            completion.computed = first.num_prompt
            self._active.append(completion)

    def _drop_finished(self) -> None:
        for completion in self._active:
            if completion.finish_reason is not None:
                self._release(completion)
        self._active = [completion for completion in self._active if completion.finish_reason is None]

    def _release(self, completion: Completion) -> None:
        for page in completion.pages:
            if page in self._copies:  # a copy into it that nobody needs any more
                self.pool.release(self._copies.pop(page))
            self.pool.release(page)
        completion.pages = []
        self.pool.cancel(completion.promised)
        completion.promised = 0
        self._admitted -= 1


def worst_case_pages(num_prompt: int, n: int, limit: int, page_size: int) -> int:
    """Pages that `n` completions of `limit` tokens can need: the prompt's full pages once, the rest n times.

    The key of the last token is never stored.
    """
    total = -(-(num_prompt + limit - 1) // page_size)
    shared = num_prompt // page_size
    return shared + n * (total - shared)
