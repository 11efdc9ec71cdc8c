"""SEM: a side reports a number that means something else.

In: a laboratory. Out: the same, broken. Each injection says what it does in its docstring, and nothing else does it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from lockstep import numerics
from lockstep.core import Request, SamplingParams
from lockstep.engine import draw, forward
from lockstep.harness.draws import Draws
from lockstep.harness.injection import Injection
from lockstep.harness.laboratory import VOCABULARY, Laboratory
from lockstep.harness.retold import with_fields
from lockstep.harness.subject import LaboratorySubject
from lockstep.kernels.head import Targets
from lockstep.kernels.sampling import Sampled
from lockstep.parity.observation import Sample

UNTRUNCATED: dict[str, Any] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
UNPENALISED: dict[str, Any] = {"presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0}

FLOORS = (0.0, -100.0)
MISSING = 0.3
"""Part of the logprobs that a client fills in."""


def raw(laboratory: Laboratory) -> None:
    """SEM01: tokens are drawn at T, logprobs are those of the plain logits."""
    _reported(laboratory, lambda plain_N, _: plain_N)


def divided(laboratory: Laboratory) -> None:
    """SEM02: tokens are drawn at T, logprobs are those of the plain logits divided by T."""
    _reported(laboratory, lambda plain_N, T_N: plain_N / T_N)


def full_softmax(laboratory: Laboratory) -> None:
    """SEM03: the trainer normalises over all tokens what the engine drew from those that it kept."""
    laboratory.hooks.believed.append(lambda rollout: with_fields(rollout, **UNTRUNCATED))


def generation_config(laboratory: Laboratory) -> None:
    """SEM04: the engine fills in fields that the request leaves out; every other engine echoes what it resolved."""
    d = Draws(laboratory.setup.seed, "generation config")
    filled = d.choice((
        {"top_k": 20, "repetition_penalty": 1.1},
        {"top_p": 0.8, "top_k": 20},
        {"top_p": 0.9},
        {"repetition_penalty": 1.2},
    ))  # fmt: skip
    asked = laboratory.setup.params

    def fill(requests: list[Request]) -> list[Request]:
        return [replace(request, params=replace(request.params, **filled)) for request in requests]

    laboratory.hooks.requests.append(fill)
    laboratory.hooks.believed.append(lambda rollout: replace(with_fields(rollout, **_of(asked)), support=None))
    laboratory.hooks.transport.append(lambda samples: [replace(s, params=asked, support=None) for s in samples])
    settings: dict[str, Any] = {"generation_config": "auto"}
    if laboratory.setup.seed % 2:
        settings["sampling"] = filled
    laboratory.hooks.statement.append(lambda said: replace(said, settings={**said.settings, **settings}))


def one_sided_penalties(laboratory: Laboratory) -> None:
    """SEM05: the trainer does not know the penalties; or the engine was asked for them and leaves them out."""
    asked = laboratory.setup.params
    if laboratory.setup.seed % 2:
        laboratory.hooks.believed.append(lambda rollout: with_fields(rollout, **UNPENALISED))
        return

    def forget(requests: list[Request]) -> list[Request]:
        return [replace(request, params=replace(request.params, **UNPENALISED)) for request in requests]

    laboratory.hooks.requests.append(forget)
    laboratory.hooks.believed.append(lambda rollout: with_fields(rollout, **_of(asked)))
    laboratory.hooks.transport.append(lambda samples: [replace(s, params=asked) for s in samples])


def grammar(laboratory: Laboratory) -> None:
    """SEM06: every second request forbids tokens, and the engine's logprobs are of what is left; the trainer's not."""
    forbidden = tuple((i,) for i in Draws(laboratory.setup.seed, "grammar").distinct(VOCABULARY // 2, VOCABULARY))
    plain = laboratory.requests

    def masked(step: int) -> list[Request]:
        return [
            replace(request, params=replace(request.params, bad_words=forbidden)) if i % 2 == 0 else request
            for i, request in enumerate(plain(step))
        ]

    laboratory.patch(laboratory, "requests", masked)
    laboratory.hooks.believed.append(lambda rollout: with_fields(rollout, bad_words=()))


def prompt_scores(laboratory: Laboratory) -> None:
    """SEM07: prompt logprobs ignore the temperature, and the sampler's series on record are taken from them."""

    def ignorant(ids_N: torch.Tensor, temperature: float, *rest: Any) -> Targets:
        del temperature
        return Targets(ids_N, 1.0, *rest)

    def rescore(samples: list[Sample]) -> list[Sample]:
        series = LaboratorySubject(laboratory).score(samples)
        return [replace(sample, sampler=scores) for sample, scores in zip(samples, series, strict=True)]

    laboratory.patch(forward, "Targets", ignorant)
    laboratory.hooks.scores.append(rescore)


def filled_in(laboratory: Laboratory) -> None:
    """SEM08: some of the sampler's logprobs are missing, and a client puts 0.0 or a floor in their place."""
    value = np.float32(FLOORS[laboratory.setup.seed % 2])

    def fill(samples: list[Sample]) -> list[Sample]:
        filled = []
        for sample in samples:
            assert sample.sampler is not None, "drawn here"
            d = Draws(laboratory.setup.seed, f"missing of {sample.id}")
            lost = np.array([d.chance(MISSING) for _ in sample.sampler], bool)
            filled.append(replace(sample, sampler=np.where(lost, value, sample.sampler)))
        return filled

    laboratory.hooks.transport.append(fill)


def _reported(laboratory: Laboratory, report: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
    """The engine draws as ever; what it says of the drawn tokens is made of the plain logprobs and the temperatures."""
    drawn_by = draw.sample

    def sample(logits_NV: torch.Tensor, params: Sequence[SamplingParams], *rest: Any) -> Sampled:
        drawn = drawn_by(logits_NV, params, *rest)
        plain_NV = numerics.log_softmax(logits_NV)
        plain_N = plain_NV.gather(1, torch.from_numpy(drawn.token_ids)[:, None])[:, 0].numpy()
        T_N = np.array([p.temperature or 1.0 for p in params], np.float32)
        return Sampled(drawn.token_ids, report(plain_N, T_N), drawn.supports)

    laboratory.patch(draw, "sample", sample)


def _of(params: SamplingParams) -> dict[str, Any]:
    """The fields that shape a distribution."""
    return {name: getattr(params, name) for name in ("temperature", *UNTRUNCATED, *UNPENALISED)}


_WARM: dict[str, Any] = {"exact": True, "temperature": 0.7}
_PLAIN: dict[str, Any] = {**UNTRUNCATED, **UNPENALISED}

INJECTIONS: Sequence[Injection] = (
    Injection("SEM01", raw, _WARM),
    Injection("SEM02", divided, {**_WARM, **_PLAIN}),
    Injection("SEM03", full_softmax, {"top_p": 0.8}),
    Injection("SEM04", generation_config, _PLAIN),
    # At T = 1 an engine that leaves penalties out and one that reports raw logprobs give the same numbers.
    Injection("SEM05", one_sided_penalties, {"temperature": 0.8, "repetition_penalty": 1.2, "frequency_penalty": 0.5}),
    Injection("SEM06", grammar, _PLAIN),
    Injection("SEM07", prompt_scores, {**_PLAIN, "temperature": 0.7, "in_flight": False}),
    Injection("SEM08", filled_in),
)
