"""PTH: one way through the engine gives other numbers, the others give the same as ever."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lockstep.core import Path
from lockstep.engine import draw
from lockstep.harness.faults.path import INJECTIONS, batch_scale, last_row_scale
from lockstep.kernels.linear import pack
from lockstep.parity.hypothesis import Hypothesis, Layout, Reading

CODES = [injection.code for injection in INJECTIONS]


stories = pytest.mark.parametrize("story", CODES, indirect=True)


@stories
def test_it_bites_from_its_onset_on(story, moved) -> None:
    assert not any(moved(clean) for clean in story.clean)
    assert moved(story.at)


def bits_of_sampler(story, hypothesis: Hypothesis) -> bool:
    pairs = zip(story.at.samples, story.explained(story.at, hypothesis), strict=True)
    return all(sample.sampler.tobytes() == series.tobytes() for sample, series in pairs)


@stories
def test_one_function_of_the_engine_is_replaced_while_it_lasts(story) -> None:
    assert len(story.replaced) == 1
    assert next(iter(story.replaced)).startswith("lockstep.engine.")


@stories
def test_the_trainer_is_honest(story, same_bits) -> None:
    for sample, series in zip(story.at.samples, story.explained(story.at), strict=True):
        assert same_bits(sample.trainer, series)


def test_a_short_window_bites_rows_of_decoding_only(tell) -> None:
    story = tell("PTH01")
    decoded = []
    for sample in story.at.samples:
        differs = sample.sampler.view(np.int32) != sample.trainer.view(np.int32)
        assert not differs[sample.path != Path.DECODE].any()
        decoded += differs[sample.path == Path.DECODE].tolist()
    assert np.mean(decoded) > 0.9


def test_rows_of_a_later_chunk_stand_one_too_far(tell) -> None:
    story = tell("PTH02")
    start = {sample.id: sample.num_cached for sample in story.at.samples if sample.num_cached}
    assert 0 < len(start) < len(story.at.samples)
    assert bits_of_sampler(story, Hypothesis(layout=Layout(shift=1, start=start)))


def test_a_prompt_that_is_cut_is_shifted_from_the_cut_on(tell) -> None:
    story = tell("PTH02", max_tokens_per_step=24)
    start = {sample.id: 24 for sample in story.at.samples}
    assert {sample.num_cached for sample in story.at.samples} == {0, 32}, "others read the shifted keys of the first"
    assert bits_of_sampler(story, Hypothesis(layout=Layout(shift=1, start=start)))


def test_who_was_run_again_goes_on_one_too_far(tell) -> None:
    story = tell("PTH03")
    again = {s.id: np.flatnonzero(s.path == Path.RECOMPUTE) for s in story.at.samples}
    start = {s.id: len(s.prompt_ids) + int(again[s.id][0]) for s in story.at.samples if len(again[s.id])}
    assert start, "pages ran short"
    assert bits_of_sampler(story, Hypothesis(layout=Layout(shift=1, start=start)))


def test_penalties_miss_the_last_token(tell) -> None:
    assert bits_of_sampler(tell("PTH06"), Hypothesis(Reading(late=1)))


@pytest.mark.parametrize("code", ["PTH04", "PTH05"])
def test_a_shared_scale_costs_little_for_each_token(tell, code: str) -> None:
    far = np.concatenate([np.abs(s.trainer - s.sampler) for s in tell(code).at.samples])
    assert 1e-4 < far.mean() < 0.05


@pytest.mark.parametrize(("install", "deciding"), [(batch_scale, (0, 1, 2)), (last_row_scale, (2,))])
def test_a_row_depends_on_the_rows_that_decide_the_scale(opened, install, deciding: tuple[int, ...]) -> None:
    rows = torch.linspace(-1.0, 1.0, 24).view(3, 8)
    weight = pack(torch.linspace(-0.5, 0.7, 40).view(5, 8), wide=True)
    with opened() as lab:
        install(lab)
        before = draw.head_logits(rows, weight)
        for loud in range(3):
            louder = rows.clone()
            louder[loud, 0] = 50.0
            other = (loud + 1) % 3
            assert torch.equal(draw.head_logits(louder, weight)[other], before[other]) == (loud not in deciding)
    assert torch.equal(draw.head_logits(rows, weight)[1:2], draw.head_logits(rows[1:2], weight))


def test_one_row_alone_has_its_own_scale_under_both(opened) -> None:
    row = torch.linspace(-1.0, 2.0, 8)[None]
    weight = pack(torch.linspace(-0.5, 0.7, 40).view(5, 8), wide=True)
    rounded = (row * 127 / 2).round() / 127 * 2
    for install in (batch_scale, last_row_scale):
        with opened() as lab:
            install(lab)
            assert torch.allclose(draw.head_logits(row, weight), rounded @ weight.weight_OI.T, atol=1e-6)
