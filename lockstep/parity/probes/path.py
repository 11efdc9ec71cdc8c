"""PTH: does a token's number depend on the way it came through the engine? Chunks, resumptions, company, order.

In: a look. Out: evidence. The experiments draw the same requests again: keyed draws give the same tokens, and where
they do not, the tokens up to the first other one still count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from lockstep.core import Path, Request, SamplingParams
from lockstep.parity.evidence import Evidence
from lockstep.parity.hypothesis import Hypothesis, Layout, Reading
from lockstep.parity.observation import Sample
from lockstep.parity.probe import ENOUGH, Look
from lockstep.parity.side import CannotAsk

FEW, SHORT = 4, 6
"""Requests of an experiment, and tokens of their prompts: few enough that any engine runs them side by side, so that
another order is not another company."""

SHIFTS = (1, -1)

USUAL = 0.03
"""Part of the mismatch that order and company may move in an engine that promises no bits; more is a cause."""

FIRST = 0.4
"""Distance of first tokens, as part of that of decoded ones, from which on the prefill deviates too."""

SEEN_ONLY = 0.85
"""The most that an experiment counts for: it shows what a number depends on, not that nothing else is wrong with it."""


def decoding(look: Look) -> Sequence[Evidence]:
    """PTH01: tokens that were decoded deviate; the same tokens by way of the prefill do not."""
    if look.subject is None or "score" not in look.subject.can:
        raise CannotAsk("decode against prefill: it needs a live engine that scores tokens")
    if not look.deviates("sampler"):
        return ()
    by_path = _by_path(look)
    if by_path is not None and by_path[1] > FIRST * by_path[0]:
        return ()  # first tokens, which come from the prefill, deviate too
    plain = [replace(sample, params=_temperature_only(sample.params)) for sample in look.samples]
    assert look.reference is not None, "deviates() asks one"
    honest = look.reference.score(plain, Hypothesis())
    prefill = look.subject.score(look.samples)
    left = sum(
        max(float(np.abs(p.astype(np.float64) - h).sum()) - look.grain * len(h), 0.0)
        for p, h in zip(prefill, honest, strict=True)
    )
    share = 1.0 - left / float(look.distance("sampler").sum())
    if share < ENOUGH:
        return ()
    why = f"decoded tokens deviate, the same tokens scored by the engine's prefill do not: that is {share:.0%} of it"
    return [Evidence("PTH01", why, min(share, SEEN_ONLY), figures={"explained": share})]


def offsets(look: Look) -> Sequence[Evidence]:
    """PTH02: from a chunk's boundary on, rows stand at a wrong position; PTH03: from a resumption on."""
    if not look.deviates("sampler"):
        return ()
    found = []
    resumed = {s.id: at for s in look.samples if (at := _resumed(s)) is not None}
    for shift in SHIFTS if resumed else ():
        for early in (0, 1):
            start = {name: at - early for name, at in resumed.items()}
            why = f"{len(start)} resumed samples go on {shift:+d} position from where they were"
            found.append(look.evidence("PTH03", Hypothesis(layout=Layout(shift=shift, start=start)), why))
    for shift in SHIFTS:
        start = _best_chunks(look, shift)
        if start:
            why = f"{len(start)} samples stand {shift:+d} position from the right one after a chunk of their prompt"
            found.append(look.evidence("PTH02", Hypothesis(layout=Layout(shift=shift, start=start)), why))
    return [evidence for evidence in found if evidence is not None]


def late(look: Look) -> Sequence[Evidence]:
    """PTH06: penalties do not know the newest token yet."""
    if not any(s.params is not None and s.params.penalizes for s in look.samples) or not look.deviates("sampler"):
        return ()
    why = "penalties count the tokens up to the one before the last"
    evidence = look.evidence("PTH06", Hypothesis(Reading(late=1)), why)
    return [] if evidence is None else [evidence]


def company(look: Look) -> Sequence[Evidence]:
    """PTH05: the same batch in another order; PTH04: each request alone. An experiment."""
    if look.subject is None or not {"sample", "seeded"} <= look.subject.can:
        raise CannotAsk("company and order: it needs a live engine whose draws are keyed")
    if not look.deviates("sampler"):
        return ()
    requests = _short(look)
    together = _series(look.subject.sample(requests))
    again = _series(look.subject.sample(requests))
    noise = _apart(together, again)
    turned = _apart(together, _series(look.subject.sample([requests[0], *requests[:0:-1]])))
    alone: dict[str, Sample] = {}
    for request in requests:
        alone |= _series(look.subject.sample([request]))
    single = _apart(together, alone)
    total = float(look.distance("sampler").sum()) / sum(len(sample.token_ids) for sample in look.samples)
    least = 2 * noise + (USUAL * total if look.grain else 0.0)
    if turned > least:
        why = f"the same requests in another order move logprobs by {turned:.3g} nats a token"
        return [_experiment("PTH05", why, noise, turned)]
    if single > least:
        why = f"requests alone and in a batch of {len(requests)} differ by {single:.3g} nats a token, in any order"
        return [_experiment("PTH04", why, noise, single)]
    return ()


def _short(look: Look) -> list[Request]:
    """Beginnings of the step's prompts, one completion each, equally long."""
    requests = look.observation.requests
    if not requests:
        raise CannotAsk("company and order: the requests of the step are not known")
    chosen = [requests[i % len(requests)] for i in range(FEW)]
    return [
        replace(request, id=f"{request.id}/alike{i}", prompt_ids=request.prompt_ids[i : i + SHORT],
                params=replace(request.params, n=1, ignore_eos=True))
        for i, request in enumerate(chosen)
    ]  # fmt: skip


def _experiment(code: str, why: str, noise: float, moved: float) -> Evidence:
    """Evidence of an experiment: never so much as an explanation of the numbers themselves."""
    said = f"{why}; the same batch twice, by {noise:.3g}"
    return Evidence(code, said, SEEN_ONLY, figures={"noise": noise, "moved": moved})


def _by_path(look: Look) -> tuple[float, float] | None:
    """Mean distance of tokens that were decoded, and of those that a prefill decided; None if nobody says which."""
    decoded, prefilled = [], []
    for sample, honest in zip(look.samples, look.score(), strict=True):
        if sample.path is None or len(sample.path) != len(honest) or sample.sampler is None:
            return None
        far = np.maximum(np.abs(sample.sampler.astype(np.float64) - honest) - look.grain, 0.0)
        decoded.append(far[sample.path == Path.DECODE])
        prefilled.append(far[sample.path != Path.DECODE])
    some, others = np.concatenate(decoded), np.concatenate(prefilled)
    return (float(some.mean()), float(others.mean())) if len(some) and len(others) else None


def _temperature_only(params: SamplingParams | None) -> SamplingParams | None:
    """What an engine's prompt logprobs mean: the temperature, no penalty, no truncation."""
    return None if params is None else SamplingParams(temperature=params.temperature or 1.0)


def _resumed(sample: Sample) -> int | None:
    """Position of the first row after a resumption, if the engine says that there was one."""
    if sample.path is None:
        return None
    at = np.flatnonzero(sample.path == Path.RECOMPUTE)
    return len(sample.prompt_ids) + int(at[0]) if at.size else None


def _best_chunks(look: Look, shift: int) -> dict[str, int]:
    """For each deviating sample, the boundary in its prompt that explains most of it; those of no use are left out."""
    honest = dict(zip((s.id for s in look.samples), look.distance("sampler").tolist(), strict=True))
    best = honest.copy()
    chosen: dict[str, int] = {}
    for tried in _boundaries(look, honest):
        left = look.distance("sampler", look.score(Hypothesis(layout=Layout(shift=shift, start=tried))))
        for sample, distance in zip(look.samples, left.tolist(), strict=True):
            if sample.id in tried and distance < best[sample.id]:
                best[sample.id], chosen[sample.id] = distance, tried[sample.id]
    return chosen


def _boundaries(look: Look, honest: Mapping[str, float]) -> Iterator[dict[str, int]]:
    """Where a chunk may begin: after the cached prefix, at multiples of the budget of a step, or anywhere if short."""
    wrong = [sample for sample in look.samples if honest[sample.id] > 0]
    yield {s.id: s.num_cached for s in wrong if s.num_cached}
    longest = max((len(sample.prompt_ids) for sample in wrong), default=0)
    budget = look.observation.engine.settings.get("max_num_batched_tokens")
    step = budget if isinstance(budget, int) and budget > 0 else 1
    if longest // step > 128:
        return
    for at in range(step, longest, step):
        yield {sample.id: at for sample in wrong if at < len(sample.prompt_ids)}


def _series(samples: Sequence[Sample]) -> dict[str, Sample]:
    return {sample.id: sample for sample in samples if sample.sampler is not None}


def _apart(a: Mapping[str, Sample], b: Mapping[str, Sample]) -> float:
    """Mean distance of the logprobs of common tokens, in nats; the first token that is another one ends a sample."""
    far = []
    for name in a.keys() & b.keys():
        mine, other = a[name], b[name]
        count = min(len(mine.token_ids), len(other.token_ids))
        unlike = np.flatnonzero(mine.token_ids[:count] != other.token_ids[:count])
        count = int(unlike[0]) if unlike.size else count
        assert mine.sampler is not None and other.sampler is not None, "kept for that"
        far.append(np.abs(mine.sampler[:count].astype(np.float64) - other.sampler[:count]))
    joined = np.concatenate(far) if far else np.empty(0)
    return float(joined.mean()) if len(joined) else 0.0
