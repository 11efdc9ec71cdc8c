"""What an audit looks at: samples as they came, filled in by nobody."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.core import Contract, Logprobs, Path, Provenance, Rollout, SamplingParams, Span, Support
from lockstep.parity.observation import Observation, Sample, Statement
from lockstep.parity.probe import Look

IDS = np.arange(4, dtype=np.int32)
SERIES = np.array([-1, -2, -0.5, -3], np.float32)
PARAMS = SamplingParams(temperature=0.7, top_k=3)


def rollout(cached: tuple[bool, ...] = (False,) * 4) -> Rollout:
    """Four tokens that two versions drew, the last after its pages were taken away."""
    origin = Provenance(
        np.array([1, 1, 1, 2], np.int32),
        np.array([Path.PREFILL, Path.DECODE, Path.DECODE, Path.RECOMPUTE], np.uint8),
        np.array(cached),
        (Span(0, 5, 1), Span(0, 6, 2)),
    )
    kept = Support(np.arange(12, dtype=np.int32), np.array([0, 3, 6, 9, 12]))
    return Rollout(
        id="step3/prompt1/0",
        task_id="t",
        prompt_ids=IDS[:3],
        token_ids=IDS,
        text="abcd",
        finish_reason="length",
        params=PARAMS,
        sampler_logprobs=Logprobs(SERIES, Contract.of(PARAMS, "float32", (1, 2))),
        provenance=origin,
        support=kept,
    )


class TestOfARollout:
    def test_what_the_engine_says_is_taken_over(self):
        drawn = rollout()
        sample = Sample.of(drawn, SERIES + 1)
        assert (sample.id, sample.group, sample.text) == ("step3/prompt1/0", "step3/prompt1", "abcd")
        assert (sample.params, sample.support, sample.finish_reason) == (PARAMS, drawn.support, "length")
        assert sample.sampler is SERIES
        assert sample.versions is drawn.provenance.weight_version
        assert sample.path is drawn.provenance.path
        assert sample.spans == drawn.provenance.spans
        assert np.array_equal(sample.prompt_ids, IDS[:3])
        assert np.array_equal(sample.token_ids, IDS)
        assert sample.trainer is not None
        assert sample.trainer.tolist() == (SERIES + 1).tolist()

    def test_without_the_trainers_logprobs_it_has_none(self):
        assert Sample.of(rollout()).trainer is None
        assert not Sample.of(rollout()).comparable

    @pytest.mark.parametrize(("cached", "count"), [((False,) * 4, 0), ((True,) * 4, None), ((True, False) * 2, None)])
    def test_how_much_was_cached_is_said_only_if_nothing_was(self, cached, count):
        assert Sample.of(rollout(cached)).num_cached == count

    def test_what_a_rollout_does_not_hold_is_not_filled_in(self):
        sample = Sample.of(rollout())
        unknown = ("again", "current", "reference", "drawn_prompt_ids", "drawn_ids", "mask", "ratio")
        assert [getattr(sample, name) for name in unknown] == [None] * len(unknown)


class TestComparable:
    @pytest.mark.parametrize("side", ["sampler", "trainer"])
    @pytest.mark.parametrize(
        "series",
        [None, SERIES[:3], np.append(SERIES, np.float32(0)), SERIES[:0]]
        + [np.where(IDS == 2, np.float32(bad), SERIES) for bad in (np.nan, np.inf, -np.inf)],
    )
    def test_a_series_that_is_missing_too_short_or_not_finite_is_not(self, side: str, series):
        whole = Sample("a", IDS[:1], IDS, SERIES, SERIES)
        assert whole.comparable
        assert not replace(whole, **{side: series}).comparable

    def test_the_tokens_decide_the_length(self):
        assert not Sample("a", IDS[:1], IDS[:3], SERIES, SERIES).comparable
        assert Sample("a", IDS[:1], IDS[:0], SERIES[:0], SERIES[:0]).comparable

    def test_other_series_do_not_matter(self):
        assert Sample("a", IDS[:1], IDS, SERIES, SERIES, again=SERIES[:1], reference=SERIES * np.nan).comparable

    @given(st.lists(st.booleans(), max_size=8))
    def test_an_observation_keeps_those_that_are_in_their_order(self, whole):
        samples = [Sample(str(i), IDS[:1], IDS, SERIES, SERIES if good else None) for i, good in enumerate(whole)]
        assert [s.id for s in Observation(1, samples).comparable] == [str(i) for i, good in enumerate(whole) if good]


class TestStatements:
    def test_nothing_said_is_nothing_known(self):
        said = Statement("engine")
        assert (said.number, said.digest, said.settings, said.tensors) == (None, None, {}, {})

    def test_an_observation_has_three_who_say_nothing(self):
        seen = Observation(1, ())
        assert [s.name for s in (seen.engine, seen.trainer, seen.expected)] == ["engine", "trainer", "publisher"]
        assert (seen.metrics, seen.requests, seen.history) == ({}, (), frozenset())

    def test_no_two_observations_share_what_they_hold(self):
        one, other = Observation(1, ()), Observation(2, ())
        assert one.metrics is not other.metrics
        assert one.engine.settings is not other.engine.settings


class TestARealStep:
    def test_every_sample_says_who_drew_it_how(self, clean: Look):
        seen = clean.observation
        assert len(seen.comparable) == len(seen.samples) == sum(request.params.n for request in seen.requests)
        for sample in seen.samples:
            assert sample.versions is not None and sample.path is not None and sample.num_cached is not None
            assert len(sample.versions) == len(sample.path) == len(sample.token_ids)
            assert set(sample.versions.tolist()) == {seen.expected.number}
            assert 0 <= sample.num_cached < len(sample.prompt_ids)

    def test_samples_belong_to_their_requests(self, clean: Look):
        prompts = {request.id: request.prompt_ids for request in clean.observation.requests}
        for sample in clean.samples:
            assert tuple(sample.prompt_ids.tolist()) == prompts[sample.group]

    def test_the_three_who_speak_agree(self, clean: Look):
        said = clean.observation
        assert said.engine.number == said.trainer.number == said.expected.number == 1
        assert said.engine.digest == said.trainer.digest == said.expected.digest
        assert said.engine.tensors == said.trainer.tensors != {}

    def test_what_is_in_flight_at_an_update_names_both_versions(self, clean_in_flight: Look):
        versions = [s.versions for s in clean_in_flight.samples if s.versions is not None]
        assert any(set(numbers.tolist()) == {0, 1} for numbers in versions)
        assert all((np.diff(numbers) >= 0).all() for numbers in versions)
        for sample in clean_in_flight.samples:
            told = [span.version for span in sample.spans]
            assert told == sorted(told)

    def test_a_look_like_another_differs_in_what_was_asked(self, clean: Look, like: Callable[..., Look]):
        """The tool of the tests of probes does what it says."""
        other = like(clean, samples=clean.samples[:1], grain=0.5)
        assert (len(other.samples), other.grain, other.reference) == (1, 0.5, clean.reference)
        kept = {f.name for f in fields(Observation)} - {"samples"}
        assert all(getattr(other.observation, name) is getattr(clean.observation, name) for name in kept)
        assert len(other.score()) == 1
