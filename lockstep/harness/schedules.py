"""Random schedules: everything that may happen to an engine, in a random order that one number decides.

In: a seed. Out: what was compared, and the first thing that was wrong.

Arrivals, lengths, shared beginnings, chunk sizes, page sizes, memory too small for all, aborts, new weights under every
policy, and every way of sampling. Afterwards every logprob must have the bits of the trainer: of its packed forward
where one version drew the whole sequence, and of the replay of its spans in every case; and no page may be left behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from lockstep.core import Path, Request, Rollout, SamplingParams
from lockstep.engine import Engine
from lockstep.harness.draws import Draws
from lockstep.harness.networks import CONTENTS, DTYPES, FAMILIES, Network, Networks
from lockstep.parity import compare
from lockstep.weight_update import UpdatePolicy

PAGE = 16
CONTEXT = 96


@dataclass(frozen=True, slots=True)
class Findings:
    """Counts over one schedule or many. `wrong`: what was wrong with the first that was, and its seed."""

    schedules: int = 0
    tokens: int = 0
    differing: int = 0
    prompt_tokens: int = 0
    leaked_pages: int = 0
    mixed_tokens: int = 0  # of sequences that several versions had a hand in
    prefix_tokens: int = 0
    preemptions: int = 0
    updates: int = 0
    aborts: int = 0
    wrong: str = ""

    def __add__(self, other: Findings) -> Findings:
        counts = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self) if f.name != "wrong"}
        return Findings(**counts, wrong=self.wrong or other.wrong)

    @property
    def clean(self) -> bool:
        return not self.wrong


class Schedule:
    """One run of an engine over a random network, decided by `seed`."""

    def __init__(self, networks: Networks, seed: int) -> None:
        self.seed, self.draw = seed, Draws(seed, "schedule")
        self.network: Network = networks.get(self.draw.choice(FAMILIES), self.draw.choice(DTYPES))
        self.engine = self._engine()
        self.contents = {0: 0}  # version number -> content
        self.done: list[Rollout] = []
        self.updates = self.aborts = 0

    def run(self) -> Findings:
        """Run it to the end, and judge it."""
        arrivals = sorted((self.draw.integer(0, 12), i) for i in range(self.draw.integer(1, 6)))
        beginnings = [self._ids(self.draw.integer(1, 40)) for _ in range(2)]
        step = 0
        while arrivals or self.engine.has_work:
            while arrivals and arrivals[0][0] <= step:
                self.engine.add(self._request(arrivals.pop(0)[1], beginnings))
            self._disturb()
            self.done += self.engine.step()
            self.engine.check()
            step += 1
        return self._judge()

    def _engine(self) -> Engine:
        page_size = self.draw.choice((PAGE, 2 * PAGE))
        probe = self.network.engine(kv_cache_gb=0.001, page_size=page_size, max_context=CONTEXT)
        pages = CONTEXT // page_size + self.draw.choice((0, 1, 3, 12))
        return self.network.engine(
            kv_cache_gb=(pages + 0.5) * probe.memory().page_bytes / 2**30,
            page_size=page_size,
            max_context=CONTEXT,
            max_tokens_per_step=self.draw.choice((8, 13, 24, 64, 256)),
            max_sequences=self.draw.integer(3, 12),
        )

    def _ids(self, count: int) -> list[int]:
        return self.draw.integers(count, 61)

    def _request(self, index: int, beginnings: Sequence[Sequence[int]]) -> Request:
        prompt = [*self.draw.choice(beginnings), *self._ids(self.draw.integer(0, 12))]
        return Request(f"r{index}", tuple(prompt), self._params())

    def _params(self) -> SamplingParams:
        """Every field is at its default more often than not, so that fields also meet alone."""
        d = self.draw

        def maybe(value: object, default: object) -> object:
            return value if d.chance(0.3) else default

        bias = tuple((i, d.number(-3, 3)) for i in d.distinct(3, 61))
        settings = {
            "temperature": d.choice((0.0, 0.3, 0.7, 1.0, 1.0, 1.4)),
            "top_k": maybe(d.integer(1, 40), 0),
            "top_p": maybe(d.number(0.3, 0.99), 1.0),
            "min_p": maybe(d.number(0.0, 0.2, 3), 0.0),
            "max_tokens": d.integer(1, 24),
            "n": d.choice((1, 1, 2, 3)),
            "seed": d.integer(0, 999),
            "stop_token_ids": maybe(tuple(d.distinct(2, 61)), ()),
            "ignore_eos": d.chance(0.7),
            "presence_penalty": maybe(d.number(-2, 2), 0.0),
            "frequency_penalty": maybe(d.number(-2, 2), 0.0),
            "repetition_penalty": maybe(d.number(0.6, 1.8), 1.0),
            "logit_bias": maybe(bias, ()),
            "bad_words": maybe((tuple(d.integers(1, 61)), tuple(d.integers(2, 61))), ()),
            "prompt_logprobs": d.chance(0.2),
        }
        return SamplingParams(**settings)  # type: ignore[arg-type]

    def _disturb(self) -> None:
        """Now and then somebody goes away, or new weights come."""
        d = self.draw
        if d.chance(0.04):
            gone = self.engine.abort(f"r{d.integer(0, 5)}")
            self.aborts += bool(gone)
            self.done += gone
        if d.chance(0.15):
            number = max(self.contents) + 1
            content = self.contents[number] = d.integer(0, CONTENTS - 1)
            policy = UpdatePolicy(
                d.choice(("keep", "keep", "wait", "abort")),
                d.choice(("keep", "salt", "recompute")),
                d.choice((0, max(number - 2, 0))),
            )
            version, params = self.network.version(number, content), self.network.weights(content)
            self.engine.update_weights(params, version, policy, share=d.chance(0.5))
            self.updates += 1

    def _judge(self) -> Findings:
        drawn = [rollout for rollout in self.done if len(rollout.token_ids)]
        result = compare(drawn, self.network.replayed(drawn, self.contents)) if drawn else None
        wrong = "" if result is None or result.status == "equal" else str(result)
        memory, counters = self.engine.memory(), self.engine.counters()
        leaked = memory.pages_used
        mixed = [rollout for rollout in drawn if len(rollout.provenance.versions) > 1]
        wrong = wrong or self._packed(drawn) or (f"{leaked} pages are still held" if leaked else "")
        return Findings(
            schedules=1,
            tokens=sum(len(rollout.token_ids) for rollout in drawn),
            differing=result.num_differing if result else 0,
            prompt_tokens=sum(len(r.prompt_logprobs) for r in drawn if r.prompt_logprobs),
            leaked_pages=leaked,
            mixed_tokens=sum(len(rollout.token_ids) for rollout in mixed),
            prefix_tokens=counters.prefix_tokens,
            preemptions=counters.preemptions,
            updates=self.updates,
            aborts=self.aborts,
            wrong=f"schedule {self.seed}: {wrong}" if wrong else "",
        )

    def _packed(self, rollouts: Sequence[Rollout]) -> str:
        """What differs from the trainer's own packed forward, where one version had a hand in all of it."""
        by_content: dict[int, list[Rollout]] = {}
        for rollout in rollouts:
            contents = {self.contents[number] for number in rollout.provenance.versions}
            if len(contents) == 1:
                by_content.setdefault(contents.pop(), []).append(rollout)
        for content, members in by_content.items():
            for rollout, theirs in zip(members, self.network.trained(members, content), strict=True):
                if not np.array_equal(rollout.sampler_logprobs.values.view(np.int32), theirs.values.view(np.int32)):
                    paths = sorted({Path(int(path)).name.lower() for path in rollout.provenance.path})
                    return f"rollout {rollout.id} differs from the packed forward (paths {', '.join(paths)})"
        return ""
