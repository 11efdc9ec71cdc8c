"""SEM: does a side report the number that it should? The same tokens, read in other ways.

In: a look. Out: evidence for the reading that explains what a side reports.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lockstep.core import Request, SamplingParams
from lockstep.parity.evidence import Evidence
from lockstep.parity.hypothesis import Hypothesis, Reading
from lockstep.parity.observation import Sample
from lockstep.parity.probe import ENOUGH, Look, excess
from lockstep.parity.side import CannotAsk

UNTRUNCATED: Mapping[str, Any] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
UNPENALISED: Mapping[str, Any] = {"presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0}
UNMASKED: Mapping[str, Any] = {"logit_bias": (), "bad_words": ()}

UNASKED: Mapping[str, Sequence[Any]] = {
    "temperature": (0.6, 0.7, 0.8, 1.0),
    "repetition_penalty": (1.05, 1.1, 1.2, 1.3),
    "top_k": (20, 40, 50),
    "top_p": (0.8, 0.9, 0.95),
}
"""What models' generation_config.json files commonly hold."""

FILLED = 4
"""Tokens with one and the same value, at which the other side differs, before it counts as filled in."""

PLAINLY = 0.05
"""Nats beyond which the other side differs at a filled-in value, whatever the noise."""

WHOLE = 0.97
"""Explained this far, there is nothing left to look for."""


def readings(look: Look) -> Sequence[Evidence]:
    """SEM01 to SEM06: one side reads the same logits in another way than was asked for."""
    found = [*_engine_reads(look), *_trainer_reads(look)]
    if look.deviates("sampler") and not any(evidence.explained > WHOLE for evidence in found):
        found += _unasked(look)
    return found


def rescored(look: Look) -> Sequence[Evidence]:
    """SEM07: the engine draws with processed logprobs, and the series on record are those of its prompt scores."""
    if look.subject is None or not {"sample", "score"} <= look.subject.can:
        raise CannotAsk("scores as a prompt: it needs a live engine that draws and scores")
    if not look.deviates("sampler"):
        return ()
    raw = look.explained(Hypothesis(Reading("raw")))
    if raw < ENOUGH:
        return ()
    recorded = look.distance("sampler", look.subject.score(look.samples)).sum()
    share = 1.0 - float(recorded) / float(look.distance("sampler").sum())
    if share < ENOUGH or not _draws_honestly(look):
        return ()
    why = (
        "the series are the engine's scores of the tokens as a prompt, which ignore the temperature; "
        f"what it gives as it draws does not: this explains {share:.1%}"
    )
    # The numbers are the raw ones: where they came from is the better answer, never the worse one.
    return [Evidence("SEM07", why, max(share, raw), figures={"explained": share})]


def filled(look: Look) -> Sequence[Evidence]:
    """SEM08: many tokens of one side have exactly one value, and the other side differs at just these."""
    if not look.samples:
        raise CannotAsk("filled-in values: no sample can be compared")
    ours, theirs = (np.concatenate([getattr(s, who) for s in look.samples]) for who in ("sampler", "trainer"))
    far = np.abs(ours.astype(np.float64) - theirs)
    total = sum(excess(*_pair(sample), look.grain) for sample in look.samples)
    places = _places(look.samples)
    found = []
    for name, values in (("engine", ours), ("trainer", theirs)):
        wrong = np.flatnonzero(far > PLAINLY)
        apart = np.unique(np.stack([values[wrong].view(np.int32), places[wrong]]), axis=1)[0]
        distinct, counts = np.unique(apart, return_counts=True)
        for value in distinct[counts >= FILLED].astype(np.int32).view(np.float32).tolist():
            there = (values == np.float32(value)) & (far > PLAINLY)
            share = min(float(far[there].sum()) / total, 1.0) if total > 0 else 0.0
            if share >= ENOUGH:
                why = f"{int(there.sum())} values of the {name} are exactly {value:g}: this explains {share:.1%}"
                found.append(Evidence("SEM08", why, share, figures={"value": value, "explained": share}))
    return found


def _pair(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    assert sample.sampler is not None and sample.trainer is not None, "comparable"
    return sample.sampler, sample.trainer


def _places(samples: Sequence[Sample]) -> np.ndarray:
    """int32 [tokens]: a number for each place of a group: completions that begin alike have one logprob there."""
    groups = {name: i for i, name in enumerate(dict.fromkeys(s.group or s.id for s in samples))}
    longest = max(len(s.token_ids) for s in samples)
    at = [groups[s.group or s.id] * longest + np.arange(len(s.token_ids)) for s in samples]
    return np.concatenate(at).astype(np.int32)


def _engine_reads(look: Look) -> Iterator[Evidence]:
    if not look.deviates("sampler"):
        return
    at = f"at temperature {', '.join(map(str, sorted({p.temperature for p in _asked(look)})))} "
    yield from _tried(look, "SEM01", Reading("raw"), f"{at}the engine reports raw logprobs")
    yield from _tried(look, "SEM02", Reading("divided"), f"{at}the engine reports raw logprobs over T")
    if _any(look, UNMASKED):
        yield from _tried(look, "SEM06", Reading("masked"), "the engine's raw logprobs are taken after its mask")
    if _any(look, UNPENALISED):
        yield from _tried(look, "SEM05", Reading(fields=UNPENALISED), "the engine leaves out the penalties asked for")


def _trainer_reads(look: Look) -> Iterator[Evidence]:
    if not look.deviates("trainer"):
        return
    for code, fields, what in (
        ("SEM03", UNTRUNCATED, "the trainer normalises over all tokens, the engine over those that it kept"),
        ("SEM05", UNPENALISED, "the trainer does not know the penalties"),
        ("SEM06", UNMASKED, "the engine's logprobs are taken after a mask of which the trainer does not know"),
    ):
        if _any(look, fields):
            yield from _tried(look, code, Reading(fields=fields), what, "trainer")


def _unasked(look: Look) -> Iterator[Evidence]:
    """SEM04: parameters that nobody asked for; those that the engine echoes, or else common ones, one by one."""
    said = look.observation.engine.settings.get("sampling")
    echoed = {k: v for k, v in said.items() if k in UNASKED} if isinstance(said, Mapping) else {}
    fields, share = (echoed, look.explained(Hypothesis(Reading(fields=echoed)))) if echoed else ({}, 0.0)
    if share < ENOUGH:
        fields, share = _searched(look)
    if fields:
        words = ", ".join(f"{name}={value}" for name, value in fields.items())
        yield from _tried(look, "SEM04", Reading(fields=fields), f"the engine draws with {words}, which nobody asked")


def _searched(look: Look) -> tuple[dict[str, Any], float]:
    """The common parameters that explain most, found one factor at a time; each must explain more than noise would."""
    fields: dict[str, Any] = {}
    best = 0.0
    for _ in UNASKED:
        tried = [{**fields, name: value} for name, values in UNASKED.items() if name not in fields for value in values]
        shares = [look.explained(Hypothesis(Reading(fields=one))) for one in tried]
        most = max(range(len(tried)), key=shares.__getitem__)
        if shares[most] < best + (1.0 - best) * 0.1:
            break
        fields, best = tried[most], shares[most]
    return fields, best


def _tried(look: Look, code: str, reading: Reading, what: str, who: Any = "sampler") -> Iterator[Evidence]:
    evidence = look.evidence(code, Hypothesis(reading), what, who)
    if evidence is not None:
        yield evidence


def _asked(look: Look) -> list[SamplingParams]:
    return [sample.params for sample in look.samples if sample.params is not None]


def _any(look: Look, fields: Mapping[str, Any]) -> bool:
    """Whether anybody asked for something else than these values."""
    return any(getattr(params, name) != value for params in _asked(look) for name, value in fields.items())


def _draws_honestly(look: Look) -> bool:
    """Whether new samples of the engine, straight from it, are what an honest reference gives."""
    assert look.subject is not None and look.reference is not None, "asked before"
    requests: Sequence[Request] = look.observation.requests
    if not requests:
        raise CannotAsk("scores as a prompt: the requests of the step are not known")
    first = replace(requests[0], id=f"{requests[0].id}/straight", params=replace(requests[0].params, n=1))
    drawn: list[Sample] = [s for s in look.subject.sample([first]) if s.sampler is not None and len(s.token_ids)]
    if not drawn:
        return False
    honest = look.reference.score(drawn, Hypothesis())
    raw = look.reference.score(drawn, Hypothesis(Reading("raw")))
    near, far = (
        sum(excess(s.sampler, r, look.grain) for s, r in zip(drawn, series, strict=True) if s.sampler is not None)
        for series in (honest, raw)
    )
    return near < far
