"""OBJ: what is made of the numbers of both sides is wrong as the fault says, and nothing else of a run is."""

from __future__ import annotations

import numpy as np
import pytest

from lockstep.harness.faults.objective import HIDDEN
from lockstep.parity.hypothesis import Hypothesis, Reading


def ratios(seen) -> list[np.ndarray]:
    """What the objective sees of each sample, in float64: the trainer now less the sampler."""
    return [s.current.astype(np.float64) - s.sampler.astype(np.float64) for s in seen.samples]


def test_metrics_are_those_of_the_tokens_that_the_mask_keeps(tell) -> None:
    story = tell("OBJ01")
    kept = np.concatenate([one[np.abs(one) <= HIDDEN] for one in ratios(story.at)])
    everything = np.concatenate(ratios(story.at))
    assert 0 < len(kept) < len(everything)
    for sample, one in zip(story.at.samples, ratios(story.at), strict=True):
        assert np.array_equal(sample.mask, np.abs(one) <= HIDDEN)
    metrics = story.at.metrics
    assert metrics["mean_abs_log_ratio_new_old"] == pytest.approx(np.abs(kept).mean())
    assert metrics["kl_new_old"] == pytest.approx((np.exp(kept) - 1 - kept).mean())
    assert metrics["ratio_new_old"] == pytest.approx(np.exp(kept).mean())
    clean = story.clean[1].metrics
    assert clean["mean_abs_log_ratio_new_old"] == pytest.approx(np.abs(everything).mean(), rel=1e-4)


def test_the_weight_of_a_sequence_is_made_of_a_sum(tell) -> None:
    story = tell("OBJ02")
    for sample, one in zip(story.at.samples, ratios(story.at), strict=True):
        assert sample.ratio == pytest.approx(np.exp(one.sum()))
    assert any(abs(one.sum()) > 2 * abs(one.mean()) > 0 for one in ratios(story.at))
    assert all(sample.ratio is None for sample in story.clean[1].samples)


def test_stale_tokens_are_scored_with_the_present_weights(tell, same_bits, moved) -> None:
    story = tell("OBJ03")
    assert moved(story.at) and moved(story.later)
    for sample, clean in zip(story.at.samples, story.clean[1].samples, strict=True):
        assert same_bits(sample.sampler, clean.sampler)
        assert same_bits(sample.trainer, clean.current)
        assert set(sample.versions.tolist()) <= {0, 1}
    stale = [set(s.versions.tolist()) | {span.version for span in s.spans} != {1} for s in story.at.samples]
    differs = [not same_bits(s.trainer, s.sampler) for s in story.at.samples]
    assert differs == stale


def test_a_batch_comes_twice_and_then_a_new_one(tell) -> None:
    story = tell("OBJ04")
    first, again, then = ([sample.id for sample in seen.samples] for seen in (*story.before, story.at, story.later))
    assert first == again
    assert set(again) <= story.at.history
    assert not set(then) & story.later.history
    for one, other in zip(story.before[0].samples, story.at.samples, strict=True):
        assert np.array_equal(one.token_ids, other.token_ids)
        assert np.array_equal(one.sampler, other.sampler)


def test_weights_arrive_although_nothing_is_drawn(tell) -> None:
    story = tell("OBJ04", seed=3)
    assert (story.at.engine.number, story.at.engine.digest) == (story.at.expected.number, story.at.expected.digest)


def test_the_sampler_stands_for_the_reference_policy(tell, same_bits, moved) -> None:
    story = tell("OBJ05")
    for seen, clean in zip((story.at, story.later), story.clean[1:], strict=True):
        assert not moved(seen)
        for sample, right in zip(seen.samples, clean.samples, strict=True):
            assert same_bits(sample.reference, sample.sampler)
            assert not same_bits(sample.reference, right.reference)


def test_raw_logprobs_are_hidden_by_metrics_of_the_trainer_alone(tell, moved) -> None:
    story = tell("OBJ06")
    raw = story.explained(story.at, Hypothesis(Reading("raw")))
    assert moved(story.at)
    for sample, series in zip(story.at.samples, raw, strict=True):
        assert np.allclose(sample.sampler, series, atol=2e-6)
    metrics = story.at.metrics
    assert (metrics["ratio_new_old"], metrics["kl_new_old"], metrics["mean_abs_log_ratio_new_old"]) == (1.0, 0.0, 0.0)
    assert np.abs(np.concatenate(ratios(story.at))).mean() > 0.01


@pytest.mark.parametrize("code", ["OBJ01", "OBJ02", "OBJ05"])
def test_what_is_drawn_and_learnt_stays_as_in_a_clean_run(tell, same_bits, code: str) -> None:
    story = tell(code)
    for seen, clean in zip((story.at, story.later), story.clean[1:], strict=True):
        assert seen.trainer == clean.trainer and seen.engine == clean.engine
        for sample, right in zip(seen.samples, clean.samples, strict=True):
            assert same_bits(sample.sampler, right.sampler) and same_bits(sample.trainer, right.trainer)
