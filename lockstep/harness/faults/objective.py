"""OBJ: engine and trainer agree, and what is made of their numbers is wrong.

In: a laboratory. Out: the same, broken: what it records of a step, or which samples it trains on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lockstep.core import Request
from lockstep.harness.faults import semantics
from lockstep.harness.hooks import Drawn
from lockstep.harness.injection import Injection
from lockstep.harness.laboratory import Laboratory
from lockstep.numerics import ratio_metrics
from lockstep.parity.observation import Observation, Sample

HIDDEN = 0.05
"""Nats beyond which the mask of OBJ01 leaves a token out."""


def after_the_mask(laboratory: Laboratory) -> None:
    """OBJ01: tokens whose ratio is far from 1 are masked, and the metrics are those of the others."""

    def record(seen: Observation) -> Observation:
        samples = [replace(s, mask=np.abs(_log_ratio(s)) <= HIDDEN) for s in seen.samples]
        return replace(seen, samples=samples, metrics={**seen.metrics, **_metrics(samples, masked=True)})

    laboratory.hooks.record.append(record)


def sum_for_mean(laboratory: Laboratory) -> None:
    """OBJ02: the weight of a sequence is the exponential of the sum of its log ratios, where their mean was meant."""

    def record(seen: Observation) -> Observation:
        samples = [replace(s, ratio=float(np.exp(_log_ratio(s).sum()))) for s in seen.samples]
        return replace(seen, samples=samples)

    laboratory.hooks.record.append(record)


def staleness(laboratory: Laboratory) -> None:
    """OBJ03: not a fault: tokens of older weights, and a trainer that scores them with its present ones."""
    laboratory.hooks.scores.append(lambda samples: [replace(s, trainer=s.current) for s in samples])


def served_twice(laboratory: Laboratory) -> None:
    """OBJ04: the loader hands out the batch of the step before once more."""
    drawn_by = laboratory.run_engine
    last = [laboratory.arrived]

    def run(requests: Sequence[Request]) -> list[Drawn]:
        if last:
            laboratory.publish()
            return last.pop()
        last.append(drawn_by(requests))
        return last[-1]

    laboratory.patch(laboratory, "run_engine", run)


def replaced_reference(laboratory: Laboratory) -> None:
    """OBJ05: the logprobs of the reference policy are missing, and the sampler's stand in their place."""
    laboratory.hooks.scores.append(lambda samples: [replace(s, reference=s.sampler) for s in samples])


def hidden_by_correction(laboratory: Laboratory) -> None:
    """OBJ06: the engine reports raw logprobs; the objective starts from the trainer's, and so do all its metrics."""
    semantics.raw(laboratory)

    def record(seen: Observation) -> Observation:
        anchored = [replace(s, sampler=s.trainer) for s in seen.samples]
        return replace(seen, metrics={**seen.metrics, **_metrics(anchored)})

    laboratory.hooks.record.append(record)


def _log_ratio(sample: Sample) -> np.ndarray:
    """float64 [T]: what the objective sees, the trainer now less the sampler."""
    assert sample.trainer is not None and sample.sampler is not None, "the laboratory scores everything"
    now = sample.trainer if sample.current is None else sample.current
    return now.astype(np.float64) - sample.sampler


def _metrics(samples: Sequence[Sample], *, masked: bool = False) -> dict[str, float]:
    ratios = [_log_ratio(s)[s.mask] if masked and s.mask is not None else _log_ratio(s) for s in samples]
    log_ratio = np.concatenate(ratios)
    return ratio_metrics(log_ratio) if len(log_ratio) else {}


_STALE = {"in_flight": True}

INJECTIONS: Sequence[Injection] = (
    Injection("OBJ01", after_the_mask, _STALE),
    Injection("OBJ02", sum_for_mean, _STALE),
    Injection("OBJ03", staleness, _STALE),
    Injection("OBJ04", served_twice, {"in_flight": False}),
    Injection("OBJ05", replaced_reference),
    Injection("OBJ06", hidden_by_correction, {"exact": True}, beneath=("SEM01",)),
)
