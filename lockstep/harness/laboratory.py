"""A small training run under glass: a real engine, a real trainer, real updates, and places at which to break them.

In: a `Setup`, and at most one fault. Out: one `Observation` a step, before the trainer takes it; a live subject.

    observe:  requests -> engine (new weights in flight, if the setup says so) -> samples -> transport hooks
              -> trainer: propose, logprobs -> trainer hooks -> Observation -> record hooks
    advance:  trainer steps -> snapshot, version + 1 -> publish hook -> engine

Everything between engine and trainer that a real run has is a list of functions here, empty in a clean run. What sits
inside of the engine is replaced for as long as the laboratory is open (`patch`). Only the harness may do that.

Letters: P prompt tokens, T drawn tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from lockstep.config import EngineConfig, parse
from lockstep.core import Decision, Logprobs, Request, Rollout
from lockstep.engine import Engine
from lockstep.harness.draws import Draws
from lockstep.harness.hooks import Drawn, Hooks, Published
from lockstep.harness.networks import Network, Networks
from lockstep.harness.retold import of_version
from lockstep.harness.setup import Setup
from lockstep.models.checkpoint import digest
from lockstep.parity.observation import Observation, Sample, Statement
from lockstep.train import Batch, Proposal, SpanScorer, Trainer
from lockstep.weight_update import UpdatePolicy, WeightVersion

PAGE = 16
CONTEXT = 128
VOCABULARY = 61


class Laboratory:
    """One training run of `setup`; a context manager, which puts everything back."""

    def __init__(self, networks: Networks, setup: Setup) -> None:
        self.setup, self.step = setup, 0
        self.hooks = Hooks()
        self.network: Network = networks.get(setup.family, setup.dtype)
        self.draw = Draws(setup.seed, "laboratory")
        config = parse(
            {
                "engine": {"dtype": setup.dtype},
                "optim": {"lr": setup.lr},
                "train": {"max_tokens_per_microbatch": 512},
                "pipeline": {"max_lag": 1},
            }
        )
        self.trainer = Trainer(self.network.model, self.network.weights(0), config)
        self.history: dict[int, dict[str, Tensor]] = {0: self.trainer.snapshot()}
        self.digests = {0: self.trainer.version.digest}
        self.policy = UpdatePolicy("keep", "salt")
        self.engine = self._engine()
        self.trained_on: frozenset[str] = frozenset()
        self.finished: list[Rollout] = []  # of the batch that is being drawn
        self.drawn: list[Rollout] = []  # what the engine drew for the step, before anybody touched it
        self.arrived: list[Drawn] = []  # the same with what came from the prefix cache
        self._pending: tuple[Proposal, Batch] | None = None
        self._unpublished: Published | None = None
        self._prefix = tuple(self.draw.integers(setup.prefix, VOCABULARY))
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._undo.close()

    def patch(self, owner: object, name: str, value: object) -> Any:
        """Replace an attribute until the laboratory closes; returns what was there."""
        before = getattr(owner, name)
        setattr(owner, name, value)
        self._undo.callback(setattr, owner, name, before)
        return before

    @property
    def engine_dtype(self) -> torch.dtype:
        """In which dtype the engine computes."""
        return torch.float32 if not self.setup.exact else getattr(torch, self.setup.dtype)

    def observe(self) -> Observation:
        """Draw the step's samples and score them; nothing is learnt before `advance`."""
        self.step += 1
        asked = self.requests(self.step)
        drawn = self.run_engine(self._hooked(self.hooks.requests, list(asked)))
        self.arrived, self.drawn = drawn, [rollout for rollout, _ in drawn]
        samples = self._hooked(self.hooks.transport, [self.sample_of(one) for one in drawn])
        samples = self._hooked(self.hooks.scores, self._scored(samples, self.drawn))
        seen = Observation(
            step=self.step,
            samples=samples,
            engine=self.statement(),
            trainer=self._trainer_says(),
            expected=Statement("publisher", {}, self.trainer.version.number, self.trainer.version.digest),
            metrics=self._pending[0].metrics if self._pending else {},
            requests=asked,
            history=self.trained_on,
        )
        return self._hooked(self.hooks.record, seen)

    def advance(self) -> None:
        """Take the step that was observed, and publish; in flight, the engine gets the weights while it draws next."""
        assert self._pending is not None, "observe first"
        proposal, batch = self._pending
        self.trainer.step(proposal, Decision("admit", proposal.id, "laboratory"))
        self._pending = None
        self.trained_on |= {rollout.id for rollout in batch.rollouts}
        version = self.trainer.version
        self.history[version.number] = self.trainer.snapshot()
        self.digests[version.number] = version.digest
        self._unpublished = self.published(version.number)
        if not self.setup.in_flight:
            self.publish()

    def publish(self) -> None:
        """Give the engine what is waiting, past the hooks."""
        waiting, self._unpublished = self._unpublished, None
        if waiting is not None:
            self.install(waiting)

    def install(self, published: Published) -> None:
        """Send weights to the engine by the (possibly broken) way of this laboratory."""
        sent: Published | None = published
        for hook in self.hooks.publish:
            sent = None if sent is None else hook(sent)
        if sent is not None:
            self.engine.update_weights(sent.params, sent.version, self.policy, share=True)

    def published(self, number: int) -> Published:
        """The weights of a version as they are sent: in the engine's dtype, with the digest of that."""
        params = {name: tensor.to(self.engine_dtype) for name, tensor in self.history[number].items()}
        same = self.engine_dtype is getattr(torch, self.setup.dtype)
        return Published(params, WeightVersion(number, self.digests[number] if same else digest(params)))

    def requests(self, step: int) -> list[Request]:
        """What a step asks for: prompts that begin alike, and go on differently from step to step."""
        d = Draws(self.setup.seed, f"requests of step {step}")
        tails = [tuple(d.integers(d.integer(2, self.setup.tail), VOCABULARY)) for _ in range(self.setup.prompts)]
        return [
            Request(f"s{step}p{i}", self._prefix + tail, self.setup.params, task_id=f"t{i}")
            for i, tail in enumerate(tails)
        ]

    def run_engine(self, requests: Sequence[Request]) -> list[Drawn]:
        """Draw all of `requests`: the first arrives alone, so that the others find its prompt in the prefix cache.

        Weights that wait for the engine come in the middle.
        """
        waiting, completions = list(requests), {}
        steps, middle = 0, 3 + self.setup.params.max_tokens // 2
        while waiting or self.engine.has_work:
            arriving = waiting[:1] if steps == 0 else waiting if self._prefilled() else []
            for request in arriving:
                self.engine.add(request)
                waiting.remove(request)
            for job in self.engine._scheduler.jobs():
                completions |= {f"{job.request.id}/{c.index}": c for c in job.completions}
            self.finished += self.engine.step()
            steps += 1
            if steps == middle:
                self.publish()
        self.publish()
        done, self.finished = {rollout.id: rollout for rollout in self.finished}, []
        order = [f"{request.id}/{i}" for request in requests for i in range(request.params.n)]
        return [(done[name], completions[name].hit) for name in order if name in done]

    def reset(self) -> None:
        """Forget all that the prefix cache holds."""
        self.engine._scheduler.pool.forget_all()

    def reinstall(self, number: int) -> None:
        """Send the weights of a version that has been there before, older ones too, by the way of all weights."""
        serving = self.engine.weights.serving
        if number < serving.version.number:
            self.engine.weights._current = None  # the order of versions is a rule for publishers
        try:
            self.install(self.published(number))
        finally:
            self.engine.weights._current = self.engine.weights._current or serving

    def sample_of(self, drawn: Drawn) -> Sample:
        """What arrives of a rollout at the trainer's door."""
        rollout, hit = drawn
        return replace(Sample.of(rollout), num_cached=hit)

    def statement(self) -> Statement:
        """What the engine says of itself, past the hooks."""
        config = self.engine.config
        settings = {
            "logprobs_mode": "processed_logprobs",
            "dtype": config.dtype,
            "head_dtype": config.head_dtype if config.head_dtype != "model" else config.dtype,
            "enable_prefix_caching": True,
            "cache_salt": "per_version" if self.policy.kv != "keep" else "none",
            "async_scheduling": False,
            "generation_config": "vllm",
        }
        serving = self.engine.version
        number = serving.number
        own = Statement("engine", settings, number, self._label(serving), self._read_back())
        return self._hooked(self.hooks.statement, own)

    def _label(self, serving: WeightVersion) -> str:
        """The digest as the publisher knows it: of the weights in the trainer's dtype."""
        held = self.history.get(serving.number)
        return serving.digest if held is None or self.setup.exact else self.digests[serving.number]

    def _read_back(self) -> dict[str, str]:
        """Digest of each tensor that the engine holds, in the publisher's dtype (bfloat16 values are exact in fp32)."""
        dtype = getattr(torch, self.setup.dtype)
        held = self.engine.weights.serving.params
        return {name: digest({name: tensor.to(dtype)}) for name, tensor in held.items()}

    def _trainer_says(self) -> Statement:
        version = self.trainer.version
        settings = {"dtype": self.setup.dtype, "head_dtype": "float32"}
        tensors = {name: digest({name: tensor}) for name, tensor in self.trainer.params.items()}
        return Statement("trainer", settings, version.number, version.digest, tensors)

    def _engine(self) -> Engine:
        dtype = "float32" if not self.setup.exact else self.setup.dtype
        first = self.published(0)
        tiny = {"dtype": dtype, "page_size": PAGE, "max_context": CONTEXT}
        probe = Engine(
            self.network.model, first.params, first.version, EngineConfig(**tiny, kv_cache_gb=0.01), share=True
        )  # type: ignore[arg-type]
        room = (self.setup.pages + 0.5) * probe.memory().page_bytes / 2**30
        config = EngineConfig(
            **tiny,  # type: ignore[arg-type]
            kv_cache_gb=room,
            max_tokens_per_step=self.setup.max_tokens_per_step,
            max_sequences=self.setup.max_sequences,
        )
        return Engine(self.network.model, first.params, first.version, config, share=True)

    def _prefilled(self) -> bool:
        return all(job.forked for job in self.engine._scheduler.jobs())

    def _scored(self, samples: list[Sample], rollouts: Sequence[Rollout]) -> list[Sample]:
        """The trainer's logprobs, at the weights (and over the keys) that the rollouts say drew them."""
        gains = np.array([1.0 if i % 2 else -1.0 for i in range(len(rollouts))])
        believed = [self._hooked(self.hooks.believed, rollout) for rollout in rollouts]
        batch = Batch(tuple(believed), gains)
        proposal = self.trainer.propose(batch)
        self._pending = proposal, batch
        series = self._at_sampling(believed, proposal.trainer_logprobs)
        first = SpanScorer(self.trainer.forward, self.history, 512).score(
            [of_version(rollout, 0) for rollout in believed]
        )
        return [
            replace(sample, trainer=then.values, current=now.values, reference=old.values)
            for sample, then, now, old in zip(samples, series, proposal.trainer_logprobs, first, strict=True)
        ]

    def _at_sampling(self, rollouts: Sequence[Rollout], now: Sequence[Logprobs]) -> list[Logprobs]:
        number = self.trainer.version.number
        stale = [i for i, rollout in enumerate(rollouts) if rollout.provenance.versions != {number}]
        scored = list(now)
        if stale:
            scorer = SpanScorer(self.trainer.forward, self.history, 512)
            for i, logprobs in zip(stale, scorer.score([rollouts[i] for i in stale]), strict=True):
                scored[i] = logprobs
        return scored

    @staticmethod
    def _hooked(hooks: Sequence[Callable[[Any], Any]], value: Any) -> Any:
        for hook in hooks:
            value = hook(value)
        return value
