"""OBJ: what was made of the numbers, computed again; and silence where it is what it is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.numerics import ratio_metrics
from lockstep.parity.observation import Observation, Sample, Statement
from lockstep.parity.probe import Look
from lockstep.parity.probes import objective
from lockstep.parity.side import CannotAsk

IDS = np.arange(4, dtype=np.int32)
SAMPLER = np.array([-3, -2, -4, -5], np.float32)
RATIOS = np.array([0.5, -0.25, 0.125, 1.0], np.float32)


def sample(name: str = "a", by: np.ndarray = RATIOS, **other: Any) -> Sample:
    """A completion whose log ratios are `by`."""
    return replace(Sample(name, IDS[:1], IDS, SAMPLER, SAMPLER + by), **other)


def seen(*samples: Sample, before: tuple[Observation, ...] = (), **other: Any) -> Look:
    return Look(Observation(1, samples, **other), before=before)


def reported(log_ratio: np.ndarray) -> dict[str, float]:
    found = ratio_metrics(log_ratio)
    return {name: found[name] for name in objective.NAMES}


class TestMetrics:
    masked = staticmethod(lambda: sample(mask=np.array([1, 1, 1, 0], bool)))

    def test_those_of_all_tokens_are_right(self):
        assert objective.metrics(seen(self.masked(), metrics=reported(RATIOS))) == ()

    def test_those_of_what_the_mask_left_are_not(self):
        (found,) = objective.metrics(seen(self.masked(), metrics=reported(RATIOS[:3])))
        assert (found.code, found.certain) == ("OBJ01", True)
        assert found.figures == {"reported": reported(RATIOS[:3]), "recomputed": reported(RATIOS)}
        assert "kl_new_old is reported as" in found.why

    def test_without_a_mask_nothing_was_left_over(self):
        assert objective.metrics(seen(sample(), metrics=reported(RATIOS[:3]))) == []

    def test_those_that_start_from_the_trainer_hide_the_sampler(self):
        moved = sample(current=SAMPLER + RATIOS + RATIOS)
        (found,) = objective.metrics(seen(moved, metrics=reported(RATIOS)))
        assert found.code == "OBJ06"
        assert objective.metrics(seen(moved, metrics=reported(RATIOS * 2))) == ()

    def test_those_that_nobody_can_reproduce_name_no_cause(self):
        assert objective.metrics(seen(self.masked(), metrics={"ratio_new_old": 99.0})) == []

    @pytest.mark.parametrize("name", objective.NAMES)
    def test_one_of_them_is_enough(self, name: str):
        (found,) = objective.metrics(seen(self.masked(), metrics={name: reported(RATIOS[:3])[name]}))
        assert f"{name} is reported as" in found.why

    def test_a_mask_that_leaves_nothing_makes_no_metric(self):
        nothing = sample(mask=np.zeros(4, bool))
        assert objective.metrics(seen(nothing, metrics=reported(RATIOS[:3]))) == []

    def test_sums_of_float32_agree(self):
        off = {name: value * (1 + objective.SAME / 2) for name, value in reported(RATIOS).items()}
        assert objective.metrics(seen(self.masked(), metrics=off)) == ()

    @pytest.mark.parametrize("metrics", [{}, {"loss": 1.0}, {"clamp_log_ratio_new_old_indicator": 0.5}])
    def test_other_metrics_cannot_be_computed_again(self, metrics):
        with pytest.raises(CannotAsk, match="reports none of ratio_new_old"):
            objective.metrics(seen(sample(), metrics=metrics))

    def test_without_tokens_there_is_nothing_to_compute(self, emptied: Any):
        for samples in ((), (emptied(sample()),)):
            with pytest.raises(CannotAsk, match="no tokens"):
                objective.metrics(seen(*samples, metrics=reported(RATIOS)))

    @given(st.lists(st.lists(st.floats(-2, 2, width=32), min_size=4, max_size=4), min_size=1, max_size=4), st.data())
    def test_whatever_the_ratios_honest_metrics_are_silent(self, rows, data):
        samples = []
        for i, row in enumerate(rows):
            mask = data.draw(st.none() | st.lists(st.booleans(), min_size=4, max_size=4).map(np.array))
            samples.append(sample(str(i), np.array(row, np.float32), mask=mask))
        ratios = np.concatenate([s.trainer.astype(np.float64) - s.sampler for s in samples])  # type: ignore[union-attr]
        assert objective.metrics(seen(*samples, metrics=reported(ratios))) == ()


class TestWeights:
    def test_a_sum_where_a_mean_was_meant(self):
        (found,) = objective.weights(seen(sample(ratio=float(np.exp(RATIOS.sum())))))
        assert (found.code, found.certain) == ("OBJ02", True)
        assert found.figures["mean"] == pytest.approx(np.exp(RATIOS.mean()))

    @pytest.mark.parametrize("ratio", [float(np.exp(RATIOS.mean())), 99.0])
    def test_a_mean_is_right_and_anything_else_has_no_name(self, ratio: float):
        assert objective.weights(seen(sample(ratio=ratio))) == ()

    def test_all_of_them_must_be_sums(self):
        right, wrong = (sample(str(i), ratio=float(np.exp(r))) for i, r in enumerate((RATIOS.mean(), RATIOS.sum())))
        assert objective.weights(seen(right, wrong)) == ()

    def test_where_sum_and_mean_are_one_nobody_can_tell(self):
        assert objective.weights(seen(sample(by=np.zeros(4, np.float32), ratio=1.0))) == ()
        short = Sample("a", IDS[:1], IDS[:1], SAMPLER[:1], SAMPLER[:1] + 1, ratio=float(np.e))
        with pytest.raises(CannotAsk, match="none was reported"):
            objective.weights(seen(short))

    def test_a_broken_engine_may_reach_infinity(self):
        far = np.full(4, 300, np.float32)
        assert [e.code for e in objective.weights(seen(sample(by=far, ratio=float("inf"))))] == ["OBJ02"]

    def test_unreported_weights_cannot_be_judged(self):
        with pytest.raises(CannotAsk, match="sequence weights: none was reported"):
            objective.weights(seen(sample()))


class TestRepetition:
    def test_samples_that_the_run_trained_on_before(self):
        (found,) = objective.repetition(seen(sample("a"), sample("b"), history=frozenset({"a"})))
        assert (found.code, found.certain, found.figures) == ("OBJ04", True, {"samples": 1})

    def test_a_few_of_many_are_no_repeated_batch(self):
        samples = [sample(name) for name in "abc"]
        assert objective.repetition(seen(*samples, history=frozenset("a"))) == ()

    def test_the_same_bits_under_another_name(self):
        old = Observation(0, [sample("old")])
        (found,) = objective.repetition(seen(sample("new"), before=(old,)))
        assert "1 of 1 samples were in an earlier batch (new)" in found.why

    def test_another_bit_is_another_draw(self):
        bent = SAMPLER.copy()
        bent.view(np.int32)[0] ^= 1
        assert objective.repetition(seen(sample(sampler=bent), before=(Observation(0, [sample("old")]),))) == ()

    def test_a_likely_completion_may_be_drawn_twice(self):
        sure = replace(sample("old"), sampler=SAMPLER / 10)
        assert objective.repetition(seen(replace(sure, id="new"), before=(Observation(0, [sure]),))) == ()

    def test_what_is_not_finite_says_nothing_of_chance(self):
        odd = replace(sample("old"), sampler=np.array([-np.inf, -1, -1, np.nan], np.float32))
        assert objective.repetition(seen(replace(odd, id="new"), before=(Observation(0, [odd]),))) == ()

    def test_samples_without_logprobs_are_known_by_their_names_only(self):
        mute = replace(sample("old"), sampler=None)
        assert objective.repetition(seen(replace(mute, id="new"), before=(Observation(0, [mute]),))) == ()
        assert [e.code for e in objective.repetition(seen(mute, history=frozenset({"old"})))] == ["OBJ04"]

    def test_in_a_real_run(self, recorded: Any, like: Any):
        look = recorded("OBJ04")
        assert [e.code for e in objective.repetition(look)] == ["OBJ04"]
        renamed = [replace(s, id=f"again/{s.id}") for s in look.observation.samples]
        assert [e.code for e in objective.repetition(like(look, samples=renamed))] == ["OBJ04"]


class TestReplaced:
    def test_a_reference_policy_with_the_samplers_bits(self, recorded: Any):
        (found,) = objective.replaced(recorded("OBJ05"))
        assert (found.code, found.certain) == ("OBJ05", True)
        assert found.figures["nats_per_token"] > 0

    def test_one_sample_of_its_own_clears_it(self, recorded: Any, like: Any):
        look = recorded("OBJ05")
        own = replace(look.samples[0], reference=np.nextafter(look.samples[0].sampler, np.float32(-9)))
        assert objective.replaced(like(look, samples=[own, *look.samples[1:]])) == ()

    def test_an_empty_completion_hides_nothing(self, recorded: Any, like: Any, emptied: Any):
        look = recorded("OBJ05")
        samples = [emptied(look.samples[0]), *look.samples[1:]]
        assert [e.code for e in objective.replaced(like(look, samples=samples))] == ["OBJ05"]

    def test_at_the_first_step_the_policies_are_the_same(self, recorded: Any, like: Any):
        look = recorded("OBJ05")
        first = [replace(s, reference=s.sampler) for s in look.before[0].samples]
        assert objective.replaced(like(look, samples=first)) == ()

    def test_noise_alone_does_not_tell_them_apart(self, recorded: Any, like: Any):
        look = recorded("OBJ05")
        (found,) = objective.replaced(look)
        assert objective.replaced(like(look, grain=found.figures["nats_per_token"])) == ()

    def test_without_anything_to_compute_it_with_nobody_can_say(self, recorded: Any, like: Any):
        with pytest.raises(CannotAsk, match="nothing here can compute"):
            objective.replaced(like(recorded("OBJ05"), reference=None))

    @pytest.mark.parametrize("reference", [None, SAMPLER[:2]])
    def test_a_reference_policy_that_was_not_reported_cannot_be_judged(self, reference):
        with pytest.raises(CannotAsk, match="no logprobs of one were reported"):
            objective.replaced(seen(sample(reference=reference)))


class TestStaleness:
    def test_newer_weights_that_score_are_named_and_not_blamed(self, recorded: Any):
        (found,) = objective.staleness(recorded("OBJ03"))
        assert (found.code, found.certain) == ("OBJ03", False)
        assert found.explained > 0.99
        assert 0 < found.figures["lag"] <= 1
        assert "honest staleness, not a fault" in found.why

    def test_a_sample_that_says_no_version_has_no_lag(self, recorded: Any, like: Any):
        look = recorded("OBJ03")
        honest = replace(look.samples[0], versions=np.empty(0, np.int32), spans=())
        (series,) = look.reference.score([honest], objective.Hypothesis())
        samples = [replace(honest, sampler=series, trainer=series), *look.samples[1:]]
        (found,) = objective.staleness(like(look, samples=samples))
        assert 0 < found.figures["lag"] <= 1

    @pytest.mark.parametrize(("noise", "named"), [(0.02, True), (0.2, False)])
    def test_noise_on_both_sides_hides_it_only_if_it_is_as_large(self, recorded: Any, like: Any, noise, named):
        look = recorded("OBJ03")
        far = float(np.abs(np.concatenate([s.trainer - s.sampler for s in look.samples])).mean())
        samples = [replace(s, sampler=s.sampler + np.float32(noise * far / 0.2)) for s in look.samples]
        assert bool(objective.staleness(like(look, samples=samples))) == named

    def test_a_sampler_that_deviates_is_not_just_older(self, recorded: Any):
        assert objective.staleness(recorded("WGT08")) == ()

    def test_a_trainer_that_is_wrong_in_another_way_is_not_newer(self, clean: Look, like: Any):
        samples = [replace(s, trainer=s.trainer - 1) for s in clean.samples if s.trainer is not None]
        assert objective.staleness(like(clean, samples=samples)) == ()

    def test_the_trainer_must_say_its_version(self, recorded: Any, like: Any):
        with pytest.raises(CannotAsk, match="does not say its version"):
            objective.staleness(like(recorded("OBJ03"), trainer=Statement("trainer")))


class TestSilence:
    def test_on_clean_runs_nothing_is_found(self, clean: Look, clean_in_flight: Look):
        for look in (clean, clean_in_flight):
            for probe in (objective.metrics, objective.repetition, objective.replaced, objective.staleness):
                assert list(probe(look)) == [], probe.__name__

    @pytest.mark.parametrize(("code", "probe"), [("OBJ01", "metrics"), ("OBJ02", "weights"), ("OBJ06", "metrics")])
    def test_and_on_broken_ones_the_fault(self, recorded: Any, code: str, probe: str):
        look = recorded(code, temperature=0.7)
        assert [e.code for e in getattr(objective, probe)(look)] == [code]

    def test_without_a_reference_nobody_can_say_who_is_stale(self, clean: Look, like: Callable[..., Look]):
        with pytest.raises(CannotAsk, match="reference: none was given"):
            objective.staleness(like(clean, reference=None))
