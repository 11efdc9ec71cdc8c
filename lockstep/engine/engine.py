"""The engine: accepts requests, runs steps, hands out rollouts, takes new weights between two steps.

In: `Request`s, prompts, weights with their version. Out: `Rollout`s, text as it is drawn. One caller at a time; calls
may be interleaved (a generation in the middle of a stream): results depend on nothing but request and weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lockstep import config as configuration
from lockstep import models
from lockstep.config import EngineConfig
from lockstep.core import Request, Rollout, SamplingParams
from lockstep.engine.accounting import Counters, Memory
from lockstep.engine.cache import PagePool
from lockstep.engine.draw import draw
from lockstep.engine.forward import last_hidden
from lockstep.engine.kv import KeyValues
from lockstep.engine.limits import Limits
from lockstep.engine.prompt import Prompt, encode_all
from lockstep.engine.request import Completion, Job, twice
from lockstep.engine.scheduler import Scheduler
from lockstep.engine.text import StopText
from lockstep.engine.weights import Generation, Update, Weights
from lockstep.errors import InputError, message
from lockstep.kernels.allocator import keep_freed_memory
from lockstep.models import Model
from lockstep.models.checkpoint import digest, read_parameters
from lockstep.weight_update import Probe, UpdatePolicy, WeightVersion

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class Engine:
    """Draws tokens; implements `core.Sampler`.

    >>> engine = Engine.load("smollm2")  # doctest: +SKIP
    >>> engine.generate("What is 2 + 3?", SamplingParams(temperature=0.0))[0].text  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Model,
        params: Mapping[str, Tensor],
        version: WeightVersion,
        config: EngineConfig | None = None,
        device: str | torch.device = "cpu",
        *,
        share: bool = False,
    ) -> None:
        """Copy `params`, which must be those that `version` names, and set the KV cache aside.

        `share` keeps the tensors instead; nobody may change them then. Raises `ConfigError` for settings that leave no
        room for a page or exceed the model's context, and what `update_weights` raises.
        """
        keep_freed_memory()
        self.model = model
        self.config = config or EngineConfig()
        dtype = _DTYPES[self.config.dtype]
        self.weights = Weights(model.arch, dtype, self.config.head_dtype, device)
        self.weights.replace(params, version, share=share)
        self.limits = Limits.of(model.arch, self.config, dtype)
        self._kv = KeyValues(model.arch, self.limits.num_pages, self.limits.page_size, dtype, device)
        self._scheduler = Scheduler(
            PagePool(self.limits.num_pages),
            self.limits.page_size,
            self.config.max_tokens_per_step,
            self.limits.max_completions,
        )
        self._scheduler.new_weights(version.number, self.weights.serving.salt, UpdatePolicy())
        self._finished: list[Completion] = []  # not yet handed out by `step`

    @classmethod
    def load(cls, name_or_path: str, *, device: str = "cpu", **settings: Any) -> Engine:
        """An engine for a model by name or HF directory; `settings` are those of `[engine]` in a configuration file."""
        config = configuration.parse({"engine": settings}).engine
        model = models.load(name_or_path)
        params = read_parameters(model.path, model.arch, _DTYPES[config.dtype], device)
        return cls(model, params, WeightVersion(0, digest(params)), config, device)

    @property
    def version(self) -> WeightVersion:
        """The weights that serve."""
        return self.weights.serving.version

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to run or to hand out."""
        return self._scheduler.has_work or bool(self._finished)

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        params: SamplingParams | None = None,
        *,
        chat: bool = True,
    ) -> list[Rollout]:
        """Completions of a string, of a conversation, or of each of a list of them, in order.

        A plain string is one user message to a model with a chat template; `chat=False` continues it as it is. The same
        call gives the same rollouts; change `params.seed` for others.
        """
        encoded = encode_all(self.model.tokenizer, prompt, chat=chat)
        params = params or SamplingParams()
        return self.sample([Request(str(i), ids, params) for i, ids in enumerate(encoded)])

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, *, chat: bool = True) -> Iterator[str]:
        """Pieces of the text of one completion as they are drawn; joined they are `generate(...)[0].text`.

        Closing the iterator aborts the request.
        """
        encoded = encode_all(self.model.tokenizer, prompt, chat=chat)
        request = Request("0", encoded[0], params or SamplingParams())
        if len(encoded) > 1 or request.params.n > 1:
            got = f"{len(encoded)} prompts, n={request.params.n}"
            do = "Use generate for several"
            raise InputError(message("stream", "one completion at a time", got=got, expected="one prompt, n=1", do=do))
        self.limits.check(request)
        return self._stream(request)

    def sample(self, requests: Sequence[Request]) -> list[Rollout]:
        """All completions, in the order of `requests` and then of the sample index.

        Raises `InputError` if one of them is refused (see `add`), before any has run.
        """
        if not requests:
            do = "Pass the requests of a batch that is not empty"
            raise InputError(message("sample", "there must be a request", got="none", expected="at least one", do=do))
        seen: set[str] = set()
        for request in requests:
            if request.id in seen:
                raise twice(request.id)
            seen.add(request.id)
            self.limits.check(request)
        jobs = [self._submit(request, awaited=True) for request in requests]
        try:
            while not all(job.done for job in jobs):
                self._advance()
        finally:
            self._abandon(jobs)
        return [self._rollout(completion) for job in jobs for completion in job.completions]

    def add(self, request: Request) -> None:
        """Queue a request for `step`.

        Raises `InputError` for an empty prompt, one that leaves no room in the context, ids outside the vocabulary, an
        id in flight, or more completions or pages than the engine has.
        """
        if any(job.request.id == request.id and not job.awaited for job in self._scheduler.jobs()):
            raise twice(request.id)
        self.limits.check(request)
        self._submit(request, awaited=False)

    def step(self) -> list[Rollout]:
        """Run one forward, and return the completions of `add`ed requests that have ended since the last call."""
        self._advance()
        finished, self._finished = self._finished, []
        return [self._rollout(completion) for completion in finished]

    def abort(self, request_id: str) -> list[Rollout]:
        """End an `add`ed request now; return what its unfinished completions have so far (none: no such request)."""
        jobs = [job for job in self._scheduler.jobs() if job.request.id == request_id and not job.awaited]
        open_ones = [c for job in jobs for c in job.completions if c.finish_reason is None]
        self._abandon(jobs)
        return [self._rollout(completion) for completion in open_ones]

    def update_weights(
        self,
        params: Mapping[str, Tensor],
        version: WeightVersion,
        policy: UpdatePolicy | None = None,
        *,
        share: bool = False,
        probe: Probe | None = None,
    ) -> None:
        """Serve `params` from the next step on, or raise and go on serving the present ones: see weights.py.

        `policy` says what becomes of requests in flight; nothing happens to them if the update fails. `share` keeps the
        tensors instead of copying them; nobody may change them then. Raises `InputError` for a stale version, an update
        that is open, or tensors that are not those of the model, `NumericsError` if they are not what `version` names,
        or do not give the logprobs of `probe`.
        """
        update = self.weights.begin(version)
        try:
            self._install(self.weights.build(params, version, share=share, probe=probe), policy or UpdatePolicy())
        finally:
            update.cancel()

    def begin_update(self, version: WeightVersion) -> Update:
        """Take tensors one by one; `finish_update` installs them all, or none. Raises as `update_weights` does.

        `Update.prepare` may do all but the swap meanwhile, in another thread.
        """
        return self.weights.begin(version)

    def finish_update(self, update: Update, policy: UpdatePolicy | None = None, *, probe: Probe | None = None) -> None:
        """Serve what was staged, under the rules of `update_weights`."""
        self._install(update.finish(probe), policy or UpdatePolicy())

    def memory(self) -> Memory:
        """What is held now."""
        pool = self._scheduler.pool
        return Memory(
            pool.free, pool.used, pool.cached, self.limits.page_bytes, self._kv.num_bytes,
            self.weights.serving.num_bytes,
        )  # fmt: skip

    def counters(self) -> Counters:
        """What has happened since the engine was made."""
        return Counters(self._scheduler.num_hits, self._scheduler.num_preemptions)

    def check(self) -> None:
        """Prove the invariants of pages and tables (see `Scheduler.check`)."""
        self._scheduler.check()

    def _install(self, generation: Generation, policy: UpdatePolicy) -> None:
        if policy.pause == "abort":
            jobs = list(self._scheduler.jobs())
            self._finished += [c for j in jobs if not j.awaited for c in j.completions if c.finish_reason is None]
            self._abandon(jobs)
        while policy.pause == "wait" and self._scheduler.has_work:
            self._advance()
        self.weights.swap(generation)
        self._scheduler.new_weights(generation.version.number, generation.salt, policy)

    def _submit(self, request: Request, *, awaited: bool, streamed: bool = False) -> Job:
        params, tokenizer = request.params, self.model.tokenizer
        stop_ids = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            stop_ids |= frozenset(tokenizer.eos_ids)
        job = Job(request, self.limits.check(request), stop_ids, awaited)
        if params.stop or streamed:
            for completion in job.completions:
                completion.text = StopText(tokenizer.stream(), params.stop)
        self._scheduler.add(job)
        return job

    def _advance(self) -> None:
        """One step. If the forward fails nothing is committed, and the step can be run again."""
        step = self._scheduler.plan()
        if not step.completions:
            return
        generation = self.weights.serving
        with torch.inference_mode():
            hidden_SE = last_hidden(step, generation, self.model.arch, self._kv)
            drawn = draw(step, hidden_SE, generation)
        for completion, token in drawn:
            _finish(completion, token)
        self._scheduler.commit(step)
        self._finished += [c for c, _ in drawn if c.finish_reason is not None and not c.job.awaited]

    def _stream(self, request: Request) -> Iterator[str]:
        job = self._submit(request, awaited=True, streamed=True)
        (completion,) = job.completions
        assert completion.text is not None, "a stream has text"
        try:
            while not job.done:
                self._advance()
                if piece := completion.text.take():
                    yield piece
            if piece := completion.text.take():  # another call, between two pieces, ran it to its end
                yield piece
        finally:
            self._abandon([job])

    def _abandon(self, jobs: Sequence[Job]) -> None:
        """Take jobs out; those that are finished are out already."""
        for job in jobs:
            if not job.done:
                self._scheduler.abort(job)
                for completion in job.completions:
                    if completion.text is not None:
                        completion.text.close()

    def _rollout(self, completion: Completion) -> Rollout:
        if completion.text is not None:
            text = completion.text.text
        else:
            ids = completion.tokens[completion.num_prompt : completion.length].tolist()
            if ids and ids[-1] in completion.job.stop_ids:
                ids.pop()
            text = self.model.tokenizer.decode(ids)
        return completion.rollout(text, self.config.head_dtype)


def _finish(completion: Completion, token: int) -> None:
    """Whether `token`, which was just drawn, is the last one, and why."""
    text, full = completion.text, completion.num_drawn == completion.job.limit
    if token in completion.job.stop_ids or (text is not None and text.push(token)):
        completion.finish_reason = "stop"
    elif full:
        completion.finish_reason = "length"
    if completion.finish_reason is not None and text is not None and text.close():
        completion.finish_reason = "stop"
