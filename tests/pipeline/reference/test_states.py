"""Hidden rows with other layout, keys or rounding: against the network by the textbook, one row after the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lockstep.harness.networks import FAMILIES
from lockstep.parity.hypothesis import Hypothesis, Keys, Layout, Reading, Rounding, Weights
from lockstep.pipeline.reference.reference import needs_own_states
from lockstep.pipeline.reference.states import int8

CLOSE = 3e-5
families = pytest.mark.parametrize("family", FAMILIES)


def near(found: np.ndarray, expected: np.ndarray) -> bool:
    assert found.dtype == np.float32
    return bool(np.allclose(found, expected, rtol=0, atol=CLOSE))


# -- layout


@families
@pytest.mark.parametrize(("shift", "start"), [(1, 0), (1, 7), (3, 20), (-2, 19)])
def test_rows_from_a_position_on_stand_elsewhere(ran, chosen, family: str, shift: int, start: int) -> None:
    run = ran(family=family)
    moved = [sample.id for sample in run.samples[::2]]
    found = run.score(Hypothesis(layout=Layout(shift, dict.fromkeys(moved, start))))
    for sample, series, stated in zip(run.samples, found, run.score(), strict=True):
        if sample.id not in moved:
            assert near(series, stated)
            continue
        logits = run.logits(sample, place=lambda p: p + shift if p >= start else p)
        assert near(series, chosen(logits / 0.7, sample))
        assert (np.abs(series - stated).max() > 10 * CLOSE) == (start > 0), "only distances count"


def test_no_row_stands_before_the_first_place(ran, chosen) -> None:
    run = ran()
    start = dict.fromkeys((sample.id for sample in run.samples), 2)
    found = run.score(Hypothesis(layout=Layout(-9, start)))
    for sample, series in zip(run.samples, found, strict=True):
        logits = run.logits(sample, place=lambda p: max(p - 9, 0) if p >= 2 else p)
        assert near(series, chosen(logits / 0.7, sample))


@families
def test_what_stands_before_a_sample_in_its_pack_is_seen(ran, chosen, plain, family: str) -> None:
    run = ran(family=family)
    first, second = run.samples[0], run.samples[2]
    before = (*first.prompt_ids.tolist(), *first.token_ids.tolist())
    found = run.score(Hypothesis(layout=Layout(before={second.id: before})))
    for sample, series, stated in zip(run.samples, found, run.score(), strict=True):
        if sample is not second:
            assert near(series, stated)
            continue
        walk = plain(run.arch, before=True)
        for place, token in enumerate(before):
            walk.row(run.weights_of(sample)(0), token, place)
        assert near(series, chosen(run.logits(sample, plain=walk) / 0.7, sample))
        assert np.abs(series - stated).max() > 0.01


# -- keys


def test_older_keys_below_a_position_are_read_by_the_newer_rows(ran, chosen) -> None:
    run = ran(in_flight=False)
    until = {sample.id: 5 + i for i, sample in enumerate(run.samples[:4])}
    found = run.score(Hypothesis(keys=Keys(older=0, until=until)))
    for sample, series, stated in zip(run.samples, found, run.score(), strict=True):
        end = until.get(sample.id, 0)
        logits = run.logits(sample, lambda p, end=end: run.lab.history[0 if p < end else 1])
        assert near(series, chosen(logits / 0.7, sample))
        assert (series.tobytes() != stated.tobytes()) == (end > 0)


@families
def test_keys_of_another_prompt_stand_in_the_place_of_the_first_ones(ran, chosen, plain, family: str) -> None:
    run = ran(family=family, in_flight=False)
    other = tuple(range(3, 20))
    instead = {sample.id: other[: 8 + i] for i, sample in enumerate(run.samples[:3])}
    found = run.score(Hypothesis(keys=Keys(instead=instead)))
    for sample, series, stated in zip(run.samples, found, run.score(), strict=True):
        walk = plain(run.arch)
        for place, token in enumerate(instead.get(sample.id, ())):
            walk.row(run.lab.history[1], token, place)
        assert near(series, chosen(run.logits(sample, plain=walk) / 0.7, sample))
        assert (np.abs(series - stated).max() > 0.01) == (sample.id in instead)


def test_the_row_that_decides_the_first_token_is_always_the_samples_own(ran, chosen, plain) -> None:
    run = ran(in_flight=False)
    sample = run.samples[0]
    longer = tuple(i % 61 for i in range(7, 60))
    series = run.score(Hypothesis(keys=Keys(instead={sample.id: longer})), [sample])[0]
    walk = plain(run.arch)
    for place, token in enumerate(longer[: len(sample.prompt_ids) - 1]):
        walk.row(run.lab.history[1], token, place)
    assert near(series, chosen(run.logits(sample, plain=walk) / 0.7, sample))


def test_weights_that_change_in_flight_and_moved_rows_go_together(ran, chosen) -> None:
    run = ran()
    changing = [sample for sample in run.samples if len({span.version for span in sample.spans}) == 2]
    assert changing
    start = {sample.id: len(sample.prompt_ids) for sample in changing}
    for sample, series in zip(changing, run.score(Hypothesis(layout=Layout(2, start)), changing), strict=True):
        logits = run.logits(sample, place=lambda p, at=start[sample.id]: p + 2 if p >= at else p)
        assert near(series, chosen(logits / 0.7, sample))


# -- rounding


def bf16(x: torch.Tensor) -> torch.Tensor:
    return x.bfloat16().to(x.dtype)


def narrow_norm(x: torch.Tensor, gain: torch.Tensor, eps: float) -> torch.Tensor:
    """Every result rounded."""
    small = bf16(x)
    mean = bf16(bf16(small * small).mean(-1, keepdim=True))
    return bf16(bf16(small * bf16((bf16(mean + eps)).rsqrt())) * bf16(gain))


def levels(x: torch.Tensor) -> torch.Tensor:
    step = x.abs().amax(-1, keepdim=True) / 127
    return (x / step).round() * step


ROUNDED = {
    "rope": (Rounding(rope="bfloat16"), {"angles": bf16}),
    "norm": (Rounding(norm="bfloat16"), {"norm": narrow_norm}),
    "kv": (Rounding(kv="int8"), {"stored": levels}),
}


@families
@pytest.mark.parametrize("name", ROUNDED)
def test_a_part_of_the_forward_is_rounded(ran, chosen, plain, family: str, name: str) -> None:
    """Where a number lies between two roundings float32 and float64 may part: the mean distance tells."""
    run = ran(family=family)
    rounding, parts = ROUNDED[name]
    found, stated = run.score(Hypothesis(rounding=rounding)), run.score()
    expected = [chosen(run.logits(s, plain=plain(run.arch, **parts)) / 0.7, s) for s in run.samples]
    off = np.abs(np.concatenate(found) - np.concatenate(expected)).mean()
    effect = np.abs(np.concatenate(found) - np.concatenate(stated)).mean()
    assert effect > 1e-4 and off < 0.2 * effect, (off, effect)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_int8_weights_are_rounded_matrices_head_included(ran, chosen, family: str) -> None:
    run = ran(family=family, in_flight=False)
    rounded = {n: levels(p) if p.dim() == 2 else p for n, p in run.lab.history[1].items()}
    found = run.score(Hypothesis(rounding=Rounding(weights="int8")))
    for sample, series in zip(run.samples, found, strict=True):
        assert near(series, chosen(run.logits(sample, lambda _: rounded) / 0.7, sample))


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_narrow_head_multiplies_and_rounds_in_bf16(ran, chosen, family: str) -> None:
    run = ran(family=family, in_flight=False)
    weight = run.lab.history[1]["embedding" if run.arch.tied else "head"]
    found = run.score(Hypothesis(rounding=Rounding(head="bfloat16")))
    stated, off = run.score(), []
    for sample, series in zip(run.samples, found, strict=True):
        logits = bf16(bf16(run.hidden(sample)) @ bf16(weight).double().T)
        off.append(np.abs(series - chosen(logits / 0.7, sample)))
    effect = np.abs(np.concatenate(found) - np.concatenate(stated)).mean()
    assert effect > 1e-4 and np.concatenate(off).mean() < 0.2 * effect


@given(arrays.arrays(np.float32, (3, 7), elements=st.floats(-50, 50, width=32)))
def test_int8_keeps_127_levels_of_each_row_and_its_largest_number(values: np.ndarray) -> None:
    found = int8(torch.from_numpy(values)).numpy()
    largest = np.abs(values).max(-1, keepdims=True)
    assert (np.abs(found - values) <= np.maximum(largest / 127, 1e-9) * 0.5001).all()
    wide = largest[:, 0] > 1e-6
    assert np.allclose(np.abs(found).max(-1)[wide], largest[wide, 0], rtol=1e-6)


# -- which way


@pytest.mark.parametrize(
    ("hypothesis", "own"),
    [
        (Hypothesis(), False),
        (Hypothesis(Reading("raw"), Weights(version=0)), False),
        (Hypothesis(keys=Keys(older=0, until={"s": 3})), False),
        (Hypothesis(rounding=Rounding(head="bfloat16", weights="int8")), False),
        (Hypothesis(keys=Keys(instead={"s": (1, 2)})), True),
        (Hypothesis(layout=Layout(before={"s": (1,)})), True),
        (Hypothesis(rounding=Rounding(norm="bfloat16")), True),
        (Hypothesis(rounding=Rounding(kv="int8")), True),
    ],
)
def test_a_forward_of_its_own_is_made_only_where_something_inside_is_other(hypothesis: Hypothesis, own: bool) -> None:
    assert needs_own_states(hypothesis) == own


def test_both_ways_agree_where_nothing_is_other(ran) -> None:
    run = ran()
    aside = {sample.id: 10**6 for sample in run.samples}
    found = run.score(Hypothesis(layout=Layout(1, aside)))
    assert all(near(series, stated) for series, stated in zip(found, run.score(), strict=True))
