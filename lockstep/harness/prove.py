"""Many schedules, or many tokens of a real model, compared one after the other; stops at the first that differs.

In: how many. Out: findings, as they come.
"""

from __future__ import annotations

import functools
import multiprocessing
import tempfile
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, as_completed, wait
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from lockstep import models
from lockstep.config import parse
from lockstep.core import Request, SamplingParams
from lockstep.engine import Engine
from lockstep.harness.draws import Draws
from lockstep.harness.networks import Networks
from lockstep.harness.schedules import Findings, Schedule
from lockstep.models import Model
from lockstep.models.checkpoint import digest, read_parameters
from lockstep.parity import compare
from lockstep.train import Trainer
from lockstep.weight_update import WeightVersion

BLOCK = 50  # schedules that a worker runs at a time


def schedules(count: int, workers: int, seed: int = 0) -> Iterator[Findings]:
    """Run schedules `seed` to `seed + count - 1` in `workers` processes; yields their findings, block by block."""
    blocks = [range(start, min(start + BLOCK, seed + count)) for start in range(seed, seed + count, BLOCK)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        running = [pool.submit(_block, block) for block in blocks]
        for done in as_completed(running):
            found = done.result()
            yield found
            if not found.clean:
                pool.shutdown(cancel_futures=True)
                return


def _block(seeds: range) -> Findings:
    with tempfile.TemporaryDirectory(prefix="lockstep-networks-") as directory:
        networks = Networks(Path(directory))
        return sum((Schedule(networks, seed).run() for seed in seeds), Findings())


@dataclass(frozen=True, slots=True)
class Compared:
    """Tokens that an engine drew and a trainer scored again."""

    tokens: int = 0
    differing: int = 0
    sequences: int = 0
    prefix_tokens: int = 0
    preemptions: int = 0
    wrong: str = ""

    def __add__(self, other: Compared) -> Compared:
        counts = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self) if f.name != "wrong"}
        return Compared(**counts, wrong=self.wrong or other.wrong)


def tokens(name: str, count: int, dtype: str, *, workers: int = 1, seed: int = 0) -> Iterator[Compared]:
    """Draw at least `count` tokens with a model and score each in the trainer's packed forward; yields running sums.

    Prompts of 1 to 90 tokens share beginnings; temperatures, truncation and lengths vary. Each of `workers` processes
    has an engine and a trainer of its own, on one thread.
    """
    context, found = multiprocessing.get_context("spawn"), Compared()
    one = functools.partial(_compare_batch, name, dtype, seed)
    with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        running = {pool.submit(one, batch) for batch in range(workers)}
        batches = workers
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for finished in done:
                found += finished.result()
                yield found
                if found.tokens < count and not found.wrong:
                    running.add(pool.submit(one, batches))
                    batches += 1


@functools.cache  # a worker compares batch after batch with one model
def _pair(name: str, dtype: str) -> tuple[Engine, Trainer]:
    config = parse({"model": name, "engine": {"dtype": dtype, "kv_cache_gb": 0.35, "max_sequences": 128}})
    model = models.load(name)
    params = read_parameters(model.path, model.arch, getattr(torch, dtype))
    engine = Engine(model, params, WeightVersion(0, digest(params)), config.engine, share=True)
    return engine, Trainer(model, params, config)


def _compare_batch(name: str, dtype: str, seed: int, batch: int) -> Compared:
    engine, trainer = _pair(name, dtype)
    before = engine.counters()
    rollouts = engine.sample(_requests(engine.model, Draws(seed, f"tokens/{batch}"), batch))
    result, counters = compare(rollouts, trainer.score(rollouts)), engine.counters()
    return Compared(
        result.num_tokens,
        result.num_differing,
        len(rollouts),
        counters.prefix_tokens - before.prefix_tokens,
        counters.preemptions - before.preemptions,
        "" if result.status == "equal" else str(result),
    )


def _requests(model: Model, draw: Draws, batch: int) -> list[Request]:
    vocabulary = model.arch.vocab_size
    beginnings = [draw.integers(draw.integer(1, 60), vocabulary) for _ in range(6)]
    requests = []
    for i in range(16):
        prompt = [*draw.choice(beginnings), *draw.integers(draw.integer(0, 30), vocabulary)]
        settings: dict[str, Any] = {"top_k": 50} if draw.chance(0.1) else {}
        params = SamplingParams(
            temperature=draw.choice((0.7, 1.0, 1.0, 1.3)), max_tokens=draw.integer(32, 128), n=8,
            seed=draw.integer(0, 2**31), ignore_eos=True, **settings,
        )  # fmt: skip
        requests.append(Request(f"{batch}/{i}", tuple(prompt), params))
    return requests
