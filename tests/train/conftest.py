"""What the tests of training share: rollouts made by hand, and a trainer of a small random model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path as FilePath

import numpy as np
import pytest
import torch

from lockstep.config import RunConfig, parse
from lockstep.core import Contract, Decision, Logprobs, Path, Provenance, Rollout, SamplingParams, Support
from lockstep.models import Model
from lockstep.models.tiny import TINY, initial_parameters
from lockstep.train import Batch, Proposal, Trainer


def rollout(
    prompt=(5, 6, 7),
    tokens=(8, 9),
    name="r0",
    task="t0",
    version=0,
    head="float32",
    params=None,
    logprobs=None,
    kept=None,
) -> Rollout:
    """A rollout; `kept` lists the token ids of each token's support."""
    params = params or SamplingParams()
    count = len(tokens)
    values = np.full(count, -1.0, np.float32) if logprobs is None else logprobs
    support = None
    if kept is not None:
        sizes = [len(ids) for ids in kept]
        support = Support(np.concatenate(kept).astype(np.int32), np.concatenate(([0], np.cumsum(sizes))))
    return Rollout(
        id=name,
        task_id=task,
        prompt_ids=np.array(prompt, np.int32),
        token_ids=np.array(tokens, np.int32),
        text="",
        finish_reason="length",
        params=params,
        sampler_logprobs=Logprobs(values, Contract.of(params, head, (version,))),
        provenance=Provenance(
            np.full(count, version, np.int32), np.full(count, Path.DECODE, np.uint8), np.zeros(count, bool)
        ),
        support=support,
    )


def trainer(dtype="float32", arch=TINY, seed=0, **sections) -> Trainer:
    """A trainer of a random model; `sections` are tables of the config, e.g. loss={"type": "gspo"}."""
    config = parse({"engine": {"dtype": dtype}, **sections})
    params = {n: p.to(getattr(torch, dtype)) for n, p in initial_parameters(arch, seed).items()}
    return Trainer(Model(FilePath("none"), arch, None), params, config)  # type: ignore[arg-type]


def on_policy(scorer: Trainer, count=4, seed=0, prompt=4, tokens=5, params=None) -> list[Rollout]:
    """Rollouts of random tokens whose sampler logprobs are the trainer's own, two to a task."""
    draw = np.random.default_rng(seed)
    vocabulary = scorer.model.arch.vocab_size
    made = [
        rollout(
            prompt=draw.integers(3, vocabulary, prompt + i % 3),
            tokens=draw.integers(3, vocabulary, tokens - i % 2),
            name=f"r{i}",
            task=f"t{i // 2}",
            version=scorer.version.number,
            params=params,
        )
        for i in range(count)
    ]
    scored = scorer.score(made)
    return [
        rollout(r.prompt_ids, r.token_ids, r.id, r.task_id, scorer.version.number, params=params, logprobs=s.values)
        for r, s in zip(made, scored, strict=True)
    ]


def admit(proposal: Proposal) -> Decision:
    return Decision("admit", proposal.id, "for the test")


def take_step(subject: Trainer, seed=0, advantages=(1.0, -1.0, 0.5, -0.5)) -> Batch:
    """Propose and take one on-policy step."""
    batch = Batch.of(on_policy(subject, len(advantages), seed), advantages)
    proposal = subject.propose(batch)
    subject.step(proposal, admit(proposal))
    return batch


@pytest.fixture(scope="session")
def make() -> type:
    """The functions of this file, by name: conftest cannot be imported."""

    class Make:
        pass

    functions: list[Callable] = [rollout, trainer, on_policy, admit, take_step]
    for function in functions:
        setattr(Make, function.__name__, staticmethod(function))
    return Make


@pytest.fixture
def config() -> RunConfig:
    return parse({})
