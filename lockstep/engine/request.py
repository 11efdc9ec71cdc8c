"""A request while it is worked on: a `Job`, and its `Completion`s, which share the prompt's pages.

In: a checked `Request`. Out: `Rollout`s. Plain state without decisions: scheduler.py and engine.py change it.

    tokens   [ prompt ............ | drawn ............. | room ]
             0         computed    num_prompt     length      capacity
    Keys of tokens[:computed] are in the cache. tokens[computed:length] is what the next forwards run; the row of the
    last of them decides token `length`. A completion whose pages were taken away has computed = 0 and runs all again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from lockstep.core import (
    Contract,
    FinishReason,
    Logprobs,
    Path,
    Provenance,
    Request,
    Rollout,
    Span,
    Support,
)
from lockstep.errors import InputError, message

if TYPE_CHECKING:
    from lockstep.engine.text import StopText


@dataclass(slots=True, eq=False)
class Job:
    """One request in flight. `limit` is how many tokens a completion may have; `stop_ids` end it.

    `awaited`: a call is waiting for this job, so `Engine.step` does not hand it out. `forked`: the prompt has run once
    and every completion goes its own way. `arrival` orders jobs.
    """

    request: Request
    limit: int
    stop_ids: frozenset[int] = frozenset()
    awaited: bool = False
    forked: bool = False
    arrival: int = 0
    prompt_logprobs: list[np.ndarray] = field(default_factory=list)  # a piece for each chunk of the prompt
    prompt_versions: list[int] = field(default_factory=list)  # the weight version of each piece
    prompt: np.ndarray = field(init=False)
    completions: tuple[Completion, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.prompt = np.asarray(self.request.prompt_ids, np.int32)
        self.prompt.flags.writeable = False  # every rollout of the job refers to it
        self.completions = tuple(Completion(self, index) for index in range(self.request.params.n))

    @property
    def done(self) -> bool:
        return all(completion.finish_reason is not None for completion in self.completions)


@dataclass(slots=True, eq=False)
class Completion:
    """Sample `index` of a job.

    `pages` hold the keys of tokens[:computed]; `page_keys` name the first of them that are full (None: they have keys
    of mixed weights, which nobody else may find). `layout` is how the present keys were run, `past` what was run before
    they were made anew. `hit`: positions whose keys were found in the cache. `recomputing`: its pages were taken away
    after it had drawn.
    """

    job: Job
    index: int
    text: StopText | None = None  # only where text is needed before the end
    key: np.ndarray | None = None  # of its uniforms
    uniforms: list[float] = field(default_factory=list)  # of the tokens from position `uniforms_from` on
    uniforms_from: int = 0
    finish_reason: FinishReason | None = None
    pages: list[int] = field(default_factory=list)
    page_keys: list[bytes] | None = field(default_factory=list)
    layout: list[Span] = field(default_factory=list)
    past: tuple[Span, ...] = ()
    hit: int = 0
    recomputing: bool = False
    computed: int = 0
    length: int = 0
    tokens: np.ndarray = field(init=False)
    logprobs: np.ndarray = field(init=False)
    versions: np.ndarray = field(init=False)
    paths: np.ndarray = field(init=False)
    cached: np.ndarray = field(init=False)
    supports: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.length = self.num_prompt
        self.tokens = np.empty(self.num_prompt + self.job.limit, np.int32)
        self.tokens[: self.length] = self.job.prompt
        self.logprobs = np.empty(self.job.limit, np.float32)
        self.versions = np.empty(self.job.limit, np.int32)
        self.paths = np.empty(self.job.limit, np.uint8)
        self.cached = np.empty(self.job.limit, bool)

    @property
    def num_prompt(self) -> int:
        return len(self.job.prompt)

    @property
    def num_drawn(self) -> int:
        return self.length - len(self.job.prompt)

    @property
    def order(self) -> tuple[int, int]:
        """Who came first; nobody has the order of another."""
        return self.job.arrival, self.index

    @property
    def spans(self) -> tuple[Span, ...]:
        """How all of it was run so far: see `core.Provenance`."""
        return (*self.past, *self.layout)

    def ran(self, start: int, end: int, version: int) -> None:
        """Positions start .. end - 1 are in the cache now, run at `version`."""
        assert start == (self.layout[-1].end if self.layout else 0), "keys are written in order"
        if self.layout and self.layout[-1].version == version:
            self.layout[-1] = Span(self.layout[-1].start, end, version)
        else:
            self.layout.append(Span(start, end, version))
        versions = {span.version for span in self.spans}
        if self.past and len(versions) == 1 and end >= max(span.end for span in self.past):
            self.past = ()  # made anew at the same weights: the same bits, as if nothing had happened

    def restart(self) -> None:
        """Its pages are gone: run everything again."""
        self.past, self.layout = self.spans, []
        self.pages, self.page_keys = [], []
        self.computed = self.hit = 0
        self.recomputing = self.num_drawn > 0

    def append(self, token: int, logprob: float, version: int, path: Path, support: np.ndarray | None) -> None:
        """Record a drawn token and where it came from."""
        at = self.num_drawn
        self.tokens[self.length] = token
        self.logprobs[at] = logprob
        self.versions[at] = version
        self.paths[at] = path
        self.cached[at] = (self if self.job.forked else self.job.completions[0]).hit > 0
        if support is not None:
            self.supports.append(support)
        self.length += 1

    def rollout(self, text: str, head_dtype: str) -> Rollout:
        """The finished completion, in arrays of its own."""
        assert self.finish_reason is not None, "a rollout is made of a finished completion"
        request, drawn = self.job.request, self.num_drawn
        versions = self.versions[:drawn].copy()
        seen = tuple(int(version) for version in np.unique(versions))
        return Rollout(
            id=f"{request.id}/{self.index}",
            task_id=request.task_id,
            prompt_ids=self.job.prompt,
            token_ids=self.tokens[self.num_prompt : self.length].copy(),
            text=text,
            finish_reason=self.finish_reason,
            params=request.params,
            sampler_logprobs=Logprobs(self.logprobs[:drawn].copy(), Contract.of(request.params, head_dtype, seen)),
            provenance=Provenance(versions, self.paths[:drawn].copy(), self.cached[:drawn].copy(), self.spans),
            support=_ragged(self.supports) if request.params.truncates else None,
            prompt_logprobs=self._prompt_logprobs(head_dtype),
        )

    def _prompt_logprobs(self, head_dtype: str) -> Logprobs | None:
        """Those of prompt_ids[1:], if they were asked for and the whole prompt has run."""
        params, pieces = self.job.request.params, self.job.prompt_logprobs
        if not params.prompt_logprobs or sum(map(len, pieces)) != self.num_prompt - 1:
            return None
        contract = Contract.of_prompt(params, head_dtype, tuple(sorted(set(self.job.prompt_versions))))
        return Logprobs(np.concatenate([np.empty(0, np.float32), *pieces]), contract)


def twice(request_id: str) -> InputError:
    """The error for an id that is in use."""
    do = "Give every request an id of its own; it is the key of its random numbers"
    return InputError(
        message(f"request ({request_id})", "ids must differ", got="the id twice", expected="each id once", do=do)
    )


def _ragged(supports: Sequence[np.ndarray]) -> Support:
    offsets = np.zeros(len(supports) + 1, np.int64)
    np.cumsum([len(ids) for ids in supports], out=offsets[1:])
    ids = np.concatenate(supports) if supports else np.empty(0, np.int32)
    return Support(ids.astype(np.int32, copy=False), offsets)
