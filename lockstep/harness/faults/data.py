"""DAT: the two sides do not speak of the same tokens.

In: a laboratory. Out: the same, broken. Every other engine says which ids it ran and drew; the others say nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from lockstep.core import Request, Rollout
from lockstep.engine import draw
from lockstep.engine.request import Completion
from lockstep.engine.uniforms import uniforms_of
from lockstep.harness.draws import Draws
from lockstep.harness.injection import Injection
from lockstep.harness.laboratory import VOCABULARY, Laboratory
from lockstep.harness.retold import with_prompt, with_tokens
from lockstep.numerics import request_key
from lockstep.parity.hypothesis import Hypothesis, Layout
from lockstep.parity.observation import Sample
from lockstep.pipeline.reference import NativeReference

Edit = Callable[[Rollout], tuple[np.ndarray, np.ndarray] | None]
"""Other tokens for a rollout, and for each of them the drawn token whose logprob it gets; None: as drawn."""

END = 0
"""What a client takes for the end token."""


def rolled(laboratory: Laboratory) -> None:
    """DAT01: the sampler's series is moved by one token."""
    lag = 1 if laboratory.setup.seed % 2 else -1

    def roll(samples: list[Sample]) -> list[Sample]:
        return [replace(s, sampler=None if s.sampler is None else np.roll(s.sampler, lag)) for s in samples]

    laboratory.hooks.transport.append(roll)


def encoded_again(laboratory: Laboratory) -> None:
    """DAT02: in every second completion two neighbouring tokens become another one."""

    def merge(rollout: Rollout) -> tuple[np.ndarray, np.ndarray] | None:
        d = Draws(laboratory.setup.seed, f"encoding of {rollout.id}")
        count = len(rollout.token_ids)
        if count < 4 or d.chance(0.5):
            return None
        at = d.integer(1, count - 2)
        kept = np.delete(np.arange(count), at + 1)
        ids = rollout.token_ids[kept].copy()
        ids[at] = (ids[at] + d.integer(1, VOCABULARY - 2)) % VOCABULARY
        return ids, kept

    _retold(laboratory, merge)


def end_appended(laboratory: Laboratory) -> None:
    """DAT03: what was cut off by length gets an end token that nobody drew, and no logprob for it."""

    def append(rollout: Rollout) -> tuple[np.ndarray, np.ndarray] | None:
        if rollout.finish_reason != "length":
            return None
        count = len(rollout.token_ids)
        return np.append(rollout.token_ids, END), np.append(np.arange(count), count - 1)

    _retold(laboratory, append)


def swapped(laboratory: Laboratory) -> None:
    """DAT04: the sampler's series of two samples change places."""

    def swap(samples: list[Sample]) -> list[Sample]:
        for i, one in enumerate(samples):
            for j in range(i + 1, len(samples)):
                if len(samples[j].token_ids) == len(one.token_ids) and (samples[j].token_ids != one.token_ids).any():
                    other = samples[j]
                    changed = list(samples)
                    changed[i] = replace(one, sampler=other.sampler)
                    changed[j] = replace(other, sampler=one.sampler)
                    return changed
        return samples

    laboratory.hooks.transport.append(swap)


def lost_at_resume(laboratory: Laboratory) -> None:
    """DAT05: of samples that carry two weight versions, the first token of the second is left out."""

    def drop(rollout: Rollout) -> tuple[np.ndarray, np.ndarray] | None:
        at = np.flatnonzero(np.diff(rollout.provenance.weight_version))
        if not at.size:
            return None
        kept = np.delete(np.arange(len(rollout.token_ids)), at[0] + 1)
        return rollout.token_ids[kept], kept

    _retold(laboratory, drop)


def other_template(laboratory: Laboratory) -> None:
    """DAT06: the prompt that the engine ran has a token more or less than the one that the trainer is given."""
    says = bool(laboratory.setup.seed % 2)
    original: dict[str, tuple[int, ...]] = {}
    d = Draws(laboratory.setup.seed, "template")
    at = d.integer(1, laboratory.setup.prefix) if says else 0
    doubled = d.chance(0.5)

    def edit(ids: tuple[int, ...]) -> tuple[int, ...]:
        return (*ids[: at + 1], *ids[at:]) if doubled else (*ids[:at], *ids[at + 1 :])

    def render(requests: list[Request]) -> list[Request]:
        original.update({request.id: request.prompt_ids for request in requests})
        return [replace(request, prompt_ids=edit(request.prompt_ids)) for request in requests]

    def here(name: str) -> np.ndarray:
        return np.array(original[name], np.int32)

    def carry(samples: list[Sample]) -> list[Sample]:
        return [
            replace(s, prompt_ids=here(s.group), drawn_prompt_ids=s.prompt_ids if says else None, spans=())
            for s in samples
        ]

    laboratory.hooks.requests.append(render)
    laboratory.hooks.transport.append(carry)
    laboratory.hooks.believed.append(lambda rollout: with_prompt(rollout, here(rollout.request_id)))


def shared_seed(laboratory: Laboratory) -> None:
    """DAT07: a prompt goes to two replicas, and the second draws with the random numbers of the first."""
    plain = laboratory.requests

    def twice(step: int) -> list[Request]:
        asked = plain(step)
        pairs = zip(asked[1::2], asked[::2], strict=False)
        again = {one.id: replace(one, prompt_ids=other.prompt_ids, task_id=other.task_id) for one, other in pairs}
        return [again.get(request.id, request) for request in asked]

    def replica(completions: Sequence[Completion]) -> list[float]:
        for completion in completions:
            request = completion.job.request
            name, _, number = request.id.rpartition("p")
            if completion.key is None and number.isdigit() and int(number) % 2:
                source = f"{name}p{int(number) - 1}"
                completion.key = request_key(request.params.seed, source, completion.index)
        return uniforms_of(completions)

    laboratory.patch(laboratory, "requests", twice)
    laboratory.patch(draw, "uniforms_of", replica)


def seen_in_pack(laboratory: Laboratory) -> None:
    """DAT08: the trainer scores a sample behind the tokens of the one before it, which it can see."""
    arch = laboratory.network.model.arch

    def score(samples: list[Sample]) -> list[Sample]:
        before = {
            sample.id: (*previous.prompt_ids.tolist(), *previous.token_ids.tolist())
            for previous, sample in pairwise(samples)
        }
        reference = NativeReference(arch, laboratory.history, None, laboratory.setup.dtype)
        series = reference.score(samples, Hypothesis(layout=Layout(before=before)))
        return [replace(sample, trainer=own) for sample, own in zip(samples, series, strict=True)]

    laboratory.hooks.scores.append(score)


def _retold(laboratory: Laboratory, edit: Edit) -> None:
    """Tokens change on their way to the trainer; the engine's logprobs do not."""
    says = bool(laboratory.setup.seed % 2)

    def believe(rollout: Rollout) -> Rollout:
        edited = edit(rollout)
        return rollout if edited is None else with_tokens(rollout, *edited)

    def carry(samples: list[Sample]) -> list[Sample]:
        by_id = {rollout.id: rollout for rollout in laboratory.drawn}
        carried = []
        for sample in samples:
            rollout = by_id.get(sample.id)  # what an audit draws besides is not of this step
            edited = edit(rollout) if rollout is not None else None
            ids = sample.token_ids if edited is None else edited[0].astype(np.int32)
            drawn = rollout.token_ids if says and rollout is not None else None
            carried.append(replace(sample, token_ids=ids, drawn_ids=drawn))
        return carried

    laboratory.hooks.believed.append(believe)
    laboratory.hooks.transport.append(carry)


_PLAIN: dict[str, Any] = {"top_k": 0, "top_p": 1.0}

INJECTIONS: Sequence[Injection] = (
    Injection("DAT01", rolled),
    Injection("DAT02", encoded_again, {**_PLAIN, "in_flight": False}),
    Injection("DAT03", end_appended, {**_PLAIN, "in_flight": False, "ignore_eos": True}),
    Injection("DAT04", swapped, {"ignore_eos": True}),
    Injection("DAT05", lost_at_resume, {**_PLAIN, "in_flight": True, "ignore_eos": True}),
    Injection("DAT06", other_template, {"in_flight": False}),
    Injection("DAT07", shared_seed),
    Injection("DAT08", seen_in_pack, {"in_flight": False}),
)
