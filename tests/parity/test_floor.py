"""The noise floor: what honest pairs differ by is no fault, what is more has a small p-value, and limits hold."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.errors import InputError
from lockstep.parity import floor as module
from lockstep.parity.floor import (
    FEWEST,
    JUDGED,
    LEAST,
    RISK,
    SCALE,
    STATISTICS,
    TAIL,
    Floor,
    confident_disagreements,
    statistics,
)
from lockstep.parity.sequential import NUM_BETS, Alarm, odds

FINITE = st.floats(-50, 50)


def noise(count: int, seed: int = 0, size: float = 0.01, tokens: int = 12) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.normal(0, size, tokens) for _ in range(count)]


def heavy(count: int, seed: int, tokens: int) -> list[np.ndarray]:
    """Rounding as it is: most tokens hardly move, unlikely ones do, and all of a sample are as sure as its prompt."""
    draw = np.random.default_rng(seed)
    return [draw.lognormal(0, 0.2) * 0.005 * draw.standard_t(6, tokens) for _ in range(count)]


class TestWhatIsMeasured:
    def test_an_exact_floor_says_so(self):
        assert Floor.exact().is_exact
        assert Floor.exact().grain == 0.0
        assert Floor.exact().quantiles() == {}
        with pytest.raises(AssertionError, match="bit by bit"):
            Floor.exact().p_value(np.zeros(3))
        with pytest.raises(AssertionError, match="bit by bit"):
            Floor.exact().rank_p_value(np.zeros(3))

    def test_a_measured_floor_is_not_exact(self):
        floor = Floor.of(noise(10))
        assert not floor.is_exact
        assert floor.num_samples == 10

    def test_a_quarter_gives_the_divisors_the_others_the_scores(self):
        floor = Floor.of(noise(40))
        assert len(floor.scores) == 30
        assert len(floor.bounds) == 31
        assert (np.diff(floor.scores) >= 0).all()
        assert len(floor.usual) == JUDGED

    def test_the_grain_is_the_scaled_mean_distance(self):
        pieces = noise(40)
        mean = float(np.abs(np.concatenate(pieces)).mean())
        assert Floor.of(pieces).grain == pytest.approx(SCALE * mean)
        assert Floor.of(pieces, scale=1.0).grain == pytest.approx(mean)

    def test_samples_without_tokens_are_left_out(self):
        assert Floor.of([*noise(10), np.empty(0)]).num_samples == 10

    @pytest.mark.parametrize("count", [0, 1, FEWEST - 1])
    def test_too_few_are_refused(self, count):
        wanted = rf"noise floor: it is measured on finite differences - got {count} samples, expected at least 8"
        with pytest.raises(InputError, match=wanted):
            Floor.of([*noise(count), np.empty(0)])

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_what_is_not_finite_is_refused(self, bad):
        with pytest.raises(InputError, match="all numbers finite"):
            Floor.of([*noise(10), np.array([0.0, bad])])

    @pytest.mark.parametrize("wrong", [{"scale": 0.0}, {"risk": 0.0}, {"risk": 1.0}, {"tail": 0.0}])
    def test_settings_are_what_they_are_called(self, wrong):
        with pytest.raises(AssertionError, match="a scale, a probability, a power"):
            Floor.of(noise(10), **wrong)

    def test_quantiles_are_of_the_differences_as_they_are(self):
        pieces = noise(30)
        table = Floor.of(pieces, scale=3.0).quantiles((0.0, 0.5, 1.0))
        assert tuple(table) == STATISTICS
        assert table["max"][1.0] == pytest.approx(max(np.abs(d).max() for d in pieces))
        assert table["mean"][0.5] == pytest.approx(float(np.median([np.abs(d).mean() for d in pieces])))
        assert table["offset"][0.0] == pytest.approx(min(abs(d.mean()) for d in pieces))

    def test_it_can_be_written_down(self):
        said = json.loads(json.dumps(Floor.of(noise(30), scale=2.0, risk=1e-3, tail=None).plain()))
        assert said["samples"] == 30
        assert (said["scale"], said["risk"], said["tail"]) == (2.0, 1e-3, None)
        assert set(said["quantiles"]) == set(STATISTICS)
        assert set(said["quantiles"]["max"]) == {"0.5", "0.9", "0.99", "1"}


class TestStatistics:
    def test_by_hand(self):
        found = statistics(np.array([0.1, -0.3, 0.2, -0.8]))
        assert found == pytest.approx({"mean": 0.35, "offset": 0.2, "max": 0.8, "growth": 0.3, "signed_mean": -0.2})

    def test_the_middle_token_of_three_is_late(self):
        assert statistics(np.array([0.0, 0.4, 0.2]))["growth"] == pytest.approx(0.3)

    @pytest.mark.parametrize("difference", [np.empty(0), np.zeros(4)])
    def test_of_nothing_they_are_nothing(self, difference):
        assert set(statistics(difference).values()) == {0.0}

    def test_one_token_has_no_growth(self):
        assert statistics(np.array([0.7]))["growth"] == 0.0

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_what_is_not_finite_is_infinitely_far(self, bad):
        found = statistics(np.array([0.1, bad]))
        assert all(found[name] == np.inf for name in STATISTICS)

    def test_confident_disagreements(self):
        sampler = np.log([0.5, 0.49, 0.99, 0.99])
        difference = np.array([-2.0, -5.0, -1.99, -3.0])
        assert confident_disagreements(sampler, difference).tolist() == [True, False, False, True]
        assert statistics(difference, sampler)["confident_disagreements"] == 2
        assert "confident_disagreements" not in statistics(difference)

    def test_being_surer_than_the_sampler_is_no_disagreement(self):
        assert not confident_disagreements(np.log([0.9]), np.array([2.5])).any()

    @given(st.lists(FINITE, min_size=1, max_size=30))
    def test_offset_mean_and_max_are_ordered(self, values):
        found = statistics(np.array(values))
        slack = 1e-9
        assert abs(found["signed_mean"]) == found["offset"] <= found["mean"] + slack
        assert found["mean"] <= found["max"] + slack
        assert abs(found["growth"]) <= found["max"] + slack


class TestPValues:
    @pytest.mark.parametrize("scale", [1.0, 1.5])
    def test_honest_samples_have_no_small_p_values(self, scale):
        """Of the very noise that was measured, whichever floor came out: rarer than uniform, at every level."""
        for seed in range(5):
            floor = Floor.of(heavy(80, seed, 12), scale=scale)
            p = np.array([floor.p_value(sample) for sample in heavy(2000, 100 + seed, 12)])
            for level in (0.5, 0.2, 0.05, 0.01, 0.001):
                assert (p <= level).mean() <= level
            assert p.max() <= 1.0

    def test_ranks_are_uniform_over_floors(self):
        """The rank is a valid p-value of one sample, and no more cautious than it must be."""
        ranks = []
        for seed in range(400):
            pieces = heavy(41, seed, 6)
            ranks.append(Floor.of(pieces[:-1], scale=1.0).rank_p_value(pieces[-1]))
        for level in (0.1, 0.3, 0.5):
            share = float((np.array(ranks) <= level).mean())
            assert abs(share - level) <= 3.5 * math.sqrt(level * (1 - level) / 400) + 1 / 31

    def test_a_rank_is_counted(self):
        floor = Floor.of([np.array([x]) for x in np.linspace(0.01, 0.4, 40)], scale=1.0)
        above = np.array([0.2])
        reached = int((np.exp(floor.scores) * floor.usual[0] >= 0.2 - 1e-12).sum())
        assert floor.rank_p_value(above) == (1 + reached) / 31
        assert floor.rank_p_value(np.array([9.0])) == 1 / 31
        assert floor.rank_p_value(np.array([0.0])) == 1.0

    def test_a_tie_is_counted_as_reached(self):
        floor = Floor.of([np.array([0.1])] * 20, scale=1.0)
        assert floor.rank_p_value(np.array([0.1])) == 1.0
        assert floor.p_value(np.array([0.1])) == 1.0
        assert floor.p_value(np.array([0.11])) < 1.0

    @pytest.mark.parametrize(("times", "usual", "worst"), [(4, 0.1, 0.5), (10, 1e-3, 0.02), (100, 1e-8, 1e-6)])
    def test_more_noise_has_small_p_values(self, times, usual, worst):
        floor = Floor.of(noise(80))
        p = [floor.p_value(sample) for sample in noise(50, seed=3, size=0.01 * times)]
        assert np.median(p) < usual
        assert max(p) < worst

    def test_an_offset_is_seen_where_the_mean_distance_hardly_moves(self):
        floor = Floor.of(noise(80, tokens=60))
        plain = noise(1, seed=4, tokens=60)[0]
        shifted = plain + 0.015
        mirrored = np.where(np.arange(60) % 2, shifted, -shifted)  # the same distances, no offset
        assert floor.p_value(shifted) < 0.002
        assert floor.p_value(mirrored) > 0.2

    def test_one_token_is_seen_among_many(self):
        floor = Floor.of(noise(80, tokens=60))
        sample = noise(1, seed=5, tokens=60)[0]
        sample[17] = 0.5
        assert floor.p_value(sample) < 1e-3

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_a_sample_that_is_not_finite_is_as_far_off_as_can_be(self, bad):
        sample = noise(1)[0]
        sample[2] = bad
        assert Floor.of(noise(10)).p_value(sample) == LEAST

    @given(st.lists(st.floats(-1, 1), min_size=0, max_size=20), st.sampled_from([None, 2.0, TAIL]))
    def test_p_values_are_p_values(self, values, tail):
        assert 0 < Floor.of(noise(10), tail=tail).p_value(np.array(values)) <= 1

    @given(st.floats(1.0, 50.0), st.integers(0, 30))
    def test_further_off_is_never_more_likely(self, factor, seed):
        floor, sample = Floor.of(noise(20)), noise(1, seed=seed)[0]
        assert floor.p_value(sample * factor) <= floor.p_value(sample)
        assert floor.rank_p_value(sample * factor) <= floor.rank_p_value(sample)

    @given(st.floats(0.1, 100.0), st.integers(0, 20))
    def test_the_unit_does_not_matter(self, unit, seed):
        pieces, sample = noise(24), noise(1, seed=seed, size=0.03)[0]
        ours, theirs = Floor.of(pieces).p_value(sample), Floor.of([d * unit for d in pieces]).p_value(sample * unit)
        assert ours == pytest.approx(theirs, rel=1e-6)

    @given(st.integers(0, 20), st.floats(1.0, 4.0))
    def test_a_larger_scale_forgives_as_much(self, seed, factor):
        pieces, sample = noise(24), noise(1, seed=seed, size=0.05)[0]
        strict, mild = Floor.of(pieces, scale=1.0), Floor.of(pieces, scale=factor)
        assert mild.p_value(sample) >= strict.p_value(sample) * (1 - 1e-9)
        assert mild.p_value(sample * factor) == pytest.approx(strict.p_value(sample), rel=1e-6)

    def test_no_difference_at_all_is_no_reason_for_doubt(self):
        assert Floor.of(noise(10)).p_value(np.zeros(12)) == 1.0

    @pytest.mark.parametrize("tail", [None, TAIL])
    @pytest.mark.parametrize("size", [0.0, 0.01])
    def test_in_no_tokens_nothing_was_seen(self, tail, size):
        floor = Floor.of(noise(10, size=size), tail=tail)
        assert floor.p_value(np.empty(0)) == floor.rank_p_value(np.empty(0, np.float32)) == 1.0

    def test_where_nothing_differed_anything_is_remarkable(self):
        floor = Floor.of([np.zeros(5)] * 10)
        assert floor.p_value(np.zeros(5)) == 1.0
        assert floor.p_value(np.array([0, 0, 1e-3, 0, 0])) == LEAST

    def test_a_statistic_that_is_always_nothing_does_not_drown_the_others(self):
        """Differences that cancel have no offset; a sample of them with an offset of rounding size is honest."""
        draw = np.random.default_rng(0)
        pairs = [np.array([x, -x]) for x in draw.normal(0, 0.01, 40)]
        floor = Floor.of(pairs)
        assert floor.p_value(np.array([0.01, -0.01 - 1e-9])) == pytest.approx(floor.p_value(np.array([0.01, -0.01])))


class TestBeyondWhatWasMeasured:
    def test_the_tail_falls_with_its_power(self):
        floor = Floor.of(noise(40), tail=3.0)
        top = np.exp(floor.scores[-1])
        p = [floor.p_value(np.full(4, floor.usual[1] * top * ratio)) for ratio in (1.001, 2.002)]
        assert p[1] == pytest.approx(p[0] / 8)

    def test_without_an_assumption_nothing_speaks_louder_than_the_highest(self):
        floor = Floor.of(noise(80), tail=None)
        assert floor.p_value(np.full(12, 1e6)) == floor.bounds[0]

    @pytest.mark.parametrize(("count", "said"), [(64, 0.22), (128, 0.12), (256, 0.06)])
    def test_how_loud_that_is_depends_on_how_many_were_measured(self, count, said):
        assert Floor.of(noise(count)).bounds[0] == pytest.approx(said, abs=0.005)

    def test_the_tail_that_is_assumed_is_heavier_than_that_of_rounding(self):
        """Of the scores above the highest of 60, at most (ratio)^-5 are `ratio` times as high or more."""
        beyond = []
        for seed in range(200):
            floor = Floor.of(heavy(80, seed, 12), scale=1.0)
            far = np.array([floor._placed(sample)[0] for sample in heavy(150, 10_000 + seed, 12)]) - floor.scores[-1]
            beyond += far[far > 0].tolist()
        assert len(beyond) > 200
        for ratio in (1.25, 1.5, 2.0):
            assert (np.array(beyond) >= np.log(ratio)).mean() <= ratio**-TAIL


class TestLimits:
    @pytest.mark.parametrize(("k", "count", "risk"), [(0, 20, 0.05), (3, 20, 1e-4), (31, 300, 1e-5), (7, 8, 0.2)])
    def test_at_the_limit_so_few_hits_have_the_probability_of_the_risk(self, k, count, risk):
        q = module._upper_limit(k, count, risk)
        few = sum(math.comb(count, j) * q**j * (1 - q) ** (count - j) for j in range(k + 1))
        assert few == pytest.approx(risk, rel=1e-6)

    def test_of_no_hits_it_has_a_closed_form(self):
        assert module._upper_limit(0, 50, 1e-3) == pytest.approx(1 - 1e-3 ** (1 / 50))

    @given(st.integers(1, 400), st.floats(1e-8, 0.5))
    def test_limits_rise_and_are_above_the_ranks(self, count, risk):
        bounds = module._bounds(count, risk)
        assert len(bounds) == count + 1
        assert (np.diff(bounds) >= 0).all()
        assert bounds[-1] == 1.0
        assert (bounds >= np.arange(count + 1) / count).all()

    @given(st.integers(2, 200))
    def test_less_risk_is_more_caution(self, count):
        assert (module._bounds(count, 1e-6) >= module._bounds(count, 1e-2)).all()

    @pytest.mark.parametrize("count", [6, 48, 190])
    def test_all_limits_hold_at_once_as_often_as_promised(self, count):
        """Uniform scores have P(score >= x) = 1 - x; the limit that goes with x must not be below, for any x."""
        draw, risk, runs = np.random.default_rng(count), 0.1, 4000
        bounds = module._bounds(count, risk)
        scores = np.sort(draw.random((runs, count)), axis=1)
        truth = 1 - scores  # just above the i-th score, count - 1 - i are reached, with this probability
        broken = (truth > bounds[:count][::-1]).any(axis=1)
        assert 0.01 < broken.mean() <= risk + 3 * math.sqrt(risk * (1 - risk) / runs)

    def test_the_risk_is_a_part_of_the_rate(self):
        floor = Floor.of(noise(10))
        assert floor.risk == RISK
        assert floor.remaining(1e-4) == pytest.approx(5e-5)
        assert Floor.exact().remaining(0.01) == 0.01
        with pytest.raises(InputError, match=r"own risk is a part .* got a rate of 5e-05, expected more than 5e-05"):
            floor.remaining(5e-5)


def streams(runs: int, steps: int, measured: int, alpha: float, *, rank: bool = False, tokens: int = 8) -> int:
    """False alarms of so many runs, each with a floor of its own and a stream of the same noise, 8 samples a step."""
    raised = 0
    for run in range(runs):
        floor = Floor.of(heavy(measured, 2 * run, 8), scale=1.0, risk=alpha / 2)
        samples = iter(heavy(8 * steps, 2 * run + 1, tokens))
        alarm = Alarm(floor.remaining(alpha))
        for _ in range(steps):
            p_values = [(floor.rank_p_value if rank else floor.p_value)(next(samples)) for _ in range(8)]
            alarm = alarm.fed(p_values)
        raised += alarm.raised
    return raised


def ever(p: np.ndarray, alpha: float) -> bool:
    """Whether an `Alarm` over the p-values [steps, samples] is ever raised, many steps at once."""
    gains = np.log(odds(p.ravel())).reshape(NUM_BETS, *p.shape).sum(2)
    stakes, steps = np.full(NUM_BETS, -np.inf), np.arange(1, len(p) + 1)
    for step in steps:
        stakes = np.logaddexp(stakes, -np.log(step * (step + 1))) + gains[:, step - 1]
        if np.exp(stakes).mean() + 1 / (step + 1) >= 1 / alpha:
            return True
    return False


class TestStreams:
    """Floor and test together, against one and the same set of measured samples."""

    @pytest.mark.parametrize("alpha", [0.2, 0.02])
    @pytest.mark.parametrize("measured", [24, 64])
    def test_false_alarms_are_no_more_than_promised(self, measured, alpha):
        runs = 150
        most = alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)
        assert streams(runs, 25, measured, alpha) / runs <= most

    def test_ranks_of_one_set_would_not_do(self):
        """Why p-values are limits: in 500 steps of 16, naive ones break a promise of 1 in 10,000 again and again."""
        draw, count, alpha, runs = np.random.default_rng(7), 48, 1e-4, 100
        limits, ranks = module._bounds(count, alpha / 2), np.arange(1, count + 2) / (count + 1)
        raised = {"limits": 0, "ranks": 0}
        for _ in range(runs):
            measured = np.sort(draw.random(count))
            reached = count - np.searchsorted(measured, draw.random((500, 16)))
            raised["limits"] += ever(limits[reached], alpha / 2)
            raised["ranks"] += ever(ranks[reached], alpha)
        assert raised["limits"] == 0
        assert raised["ranks"] >= 3

    def test_the_shortcut_of_this_test_is_the_alarm(self):
        draw = np.random.default_rng(8)
        p = draw.random((12, 5)) ** 2
        alarm = Alarm(0.05)
        for step in p:
            alarm = alarm.fed(step.tolist())
        assert ever(p, 0.05) == alarm.raised
        assert not ever(np.ones((12, 5)), 0.05)

    def test_noise_that_falls_and_comes_back_raises_none(self):
        """Growth within what was measured is no fault, whatever came before it."""
        for run in range(10):
            floor = Floor.of(heavy(80, run, 12))
            alarm = Alarm(floor.remaining(0.01))
            for step in range(30):
                size = 0.05 if 5 < step < 20 else 1.0
                alarm = alarm.fed([floor.p_value(size * d) for d in heavy(8, 1000 * run + step + 1, 12)])
            assert not alarm.raised

    @pytest.mark.parametrize("tokens", [2, 80])
    def test_shorter_and_longer_samples_than_were_measured_raise_none_with_the_usual_scale(self, tokens):
        """Ten times as long, a quarter as long: what the scale and the caution of the limits allow for."""
        for run in range(12):
            floor = Floor.of(heavy(80, run, 8))
            alarm = Alarm(floor.remaining(1e-3))
            for step in range(20):
                alarm = alarm.fed([floor.p_value(d) for d in heavy(8, 1000 * run + step + 1, tokens)])
            assert not alarm.raised

    @pytest.mark.parametrize("measured", [64, 256])
    def test_an_obvious_fault_is_seen_in_one_step_of_few_samples(self, measured):
        """Ten times the noise: 2 samples with the tail, one step of 16 without any assumption."""
        far = [10 * d for d in noise(16, seed=9)]
        bold = Floor.of(noise(measured))
        assert Alarm(bold.remaining(1e-4)).fed([bold.p_value(d) for d in far[:4]]).raised
        cautious = Floor.of(noise(measured), tail=None)
        assert Alarm(cautious.remaining(1e-4)).fed([cautious.p_value(d) for d in far]).raised

    def test_one_ruined_sample_among_sixteen_is_enough(self):
        floor = Floor.of(heavy(80, 0, 12))
        step = heavy(16, 1, 12)
        step[5] = step[5] + np.where(np.arange(12) == 7, 3.0, 0.0)
        assert Alarm(floor.remaining(1e-4)).fed([floor.p_value(d) for d in step]).raised

    @pytest.mark.parametrize(("times", "within"), [(3.0, 2), (2.0, 3)])
    def test_small_faults_are_seen_within_three_steps(self, times, within):
        """Of `scale` 1 and 256 measured samples: two or three times their noise, 16 samples a step, 9 runs of 10."""
        seen = 0
        for run in range(20):
            floor = Floor.of(heavy(256, run, 12), scale=1.0)
            alarm = Alarm(floor.remaining(1e-4))
            for step in range(within):
                alarm = alarm.fed([floor.p_value(times * d) for d in heavy(16, 50 * run + step + 1000, 12)])
            seen += alarm.raised
        assert seen >= 17

    def test_what_is_within_the_scale_is_never_seen(self):
        """Of `scale` 1.5: noise that is 1.4 times as large as the measured is no fault, by definition."""
        for run in range(6):
            floor = Floor.of(heavy(128, run, 12))
            alarm = Alarm(floor.remaining(1e-4))
            for step in range(40):
                alarm = alarm.fed([floor.p_value(1.4 * d) for d in heavy(8, 50 * run + step + 1000, 12)])
            assert not alarm.raised
