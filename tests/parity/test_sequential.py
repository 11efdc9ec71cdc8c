"""The sequential test keeps its rate of false alarms however often it is looked at, and sees what is wrong soon."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.parity.sequential import NUM_BETS, POWERS, THRESHOLDS, Alarm, odds

P_VALUES = st.floats(1e-15, 1.0)
STEPS = st.lists(st.lists(P_VALUES, max_size=6), max_size=8)


def after(steps, alpha: float = 1e-3) -> Alarm:
    alarm = Alarm(alpha)
    for step in steps:
        alarm = alarm.fed(step)
    return alarm


def false_alarms(runs: int, steps: int, alpha: float, draw) -> float:
    """The fraction of runs in which an alarm is raised; `draw(run)` gives a function that gives a step's p-values."""
    raised = 0
    for run in range(runs):
        step, alarm = draw(run), Alarm(alpha)
        for _ in range(steps):
            alarm = alarm.fed(step().tolist())
        raised += alarm.raised
    return raised / runs


def most(alpha: float, runs: int) -> float:
    return alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)


class TestAlarm:
    def test_nothing_is_known_before_the_first_sample(self):
        assert Alarm(0.01).evidence == 1.0
        assert not Alarm(0.01).raised

    @pytest.mark.parametrize("alpha", [0.0, 1.0, -0.5, 2.0])
    def test_a_rate_is_a_rate(self, alpha):
        with pytest.raises(AssertionError, match="between 0 and 1"):
            Alarm(alpha)

    @pytest.mark.parametrize("p", [0.0, -0.1, 1.5, float("nan")])
    def test_a_p_value_is_a_p_value(self, p):
        with pytest.raises(AssertionError, match="p-value"):
            Alarm(0.01).fed([p])

    def test_it_is_a_value(self):
        first = Alarm(0.01)
        first.fed([0.001])
        assert (first.steps, first.evidence) == (0, 1.0)
        with pytest.raises(dataclasses.FrozenInstanceError):
            first.raised = True  # type: ignore[misc]

    @given(STEPS)
    def test_evidence_is_positive_and_samples_are_counted(self, steps):
        alarm = after(steps)
        assert alarm.evidence > 0
        assert alarm.samples == sum(map(len, steps))
        assert alarm.steps == len(steps)

    @given(STEPS)
    def test_it_is_raised_where_the_evidence_once_was_enough(self, steps):
        alarm, reached = Alarm(0.01), False
        for step in steps:
            alarm = alarm.fed(step)
            reached = reached or alarm.evidence >= 100
            assert alarm.raised == reached

    @given(STEPS, st.lists(P_VALUES, min_size=1, max_size=4))
    def test_once_raised_it_stays_raised(self, steps, more):
        alarm = after([*steps, [1e-9] * 8])
        assert alarm.raised
        assert alarm.fed(more).raised

    def test_also_when_the_evidence_has_gone_again(self):
        later = after([[1e-3] * 4, [1.0] * 300])
        assert later.raised
        assert later.evidence < 1 / later.alpha

    @given(st.lists(P_VALUES, min_size=1, max_size=10))
    def test_the_order_within_a_step_does_not_matter(self, step):
        forwards, backwards = after([step]), after([step[::-1]])
        assert forwards.evidence == pytest.approx(backwards.evidence, rel=1e-9)

    @given(st.lists(P_VALUES, min_size=1, max_size=6), st.floats(0.01, 0.99))
    def test_smaller_p_values_are_more_evidence(self, step, factor):
        smaller = [max(p * factor, 1e-300) for p in step]
        assert after([smaller]).evidence >= after([step]).evidence * (1 - 1e-9)

    def test_a_step_without_samples_costs_nothing(self):
        assert after([[], [], []]).evidence == pytest.approx(1.0)

    @pytest.mark.parametrize("steps", [1, 9, 99])
    def test_the_money_that_is_not_put_down_is_not_lost(self, steps):
        alarm = after([[1.0] * 50] * steps)
        assert alarm.evidence >= 1 / (steps + 1)

    def test_overwhelming_evidence_is_infinite_and_no_error(self):
        alarm = after([[1e-15] * 40] * 3)
        assert alarm.raised
        assert alarm.evidence == math.inf


class TestBets:
    def test_there_are_as_many_as_are_counted(self):
        assert odds(np.array([0.5, 0.1])).shape == (NUM_BETS, 2)
        assert len(THRESHOLDS) + len(POWERS) == NUM_BETS

    def test_each_is_fair(self):
        """Mean odds are 1 for uniform p: the midpoint rule in the log of p, where the small bets live."""
        edges = np.exp(np.linspace(-300, 0, 600_001))
        middle = np.sqrt(edges[1:] * edges[:-1])
        means = [float((row * np.diff(edges)).sum()) for row in odds(middle)]
        assert means == pytest.approx([1.0] * NUM_BETS, abs=2e-3)

    def test_none_gains_by_a_larger_p(self):
        """So that they are worth no more than fair for every p-value that is larger than uniform."""
        p = np.exp(np.linspace(-40, 0, 4_001))
        assert (np.diff(odds(p), axis=1) <= 1e-12).all()
        assert (odds(np.array([1.0])) <= 1.0).all()

    def test_none_can_lose_everything_at_once(self):
        assert (odds(np.array([1.0])) > 0.04).all()

    def test_a_threshold_wins_at_its_very_value(self):
        share, threshold = THRESHOLDS[0]
        assert odds(np.array([threshold]))[0, 0] == pytest.approx(1 - share + share / threshold)
        assert odds(np.array([np.nextafter(threshold, 1)]))[0, 0] == pytest.approx(1 - share)

    def test_by_hand(self):
        """One step of one p-value: the mean over all bets, half put down, half still in hand."""
        mean = odds(np.array([0.01])).mean()
        assert Alarm(0.01).fed([0.01]).evidence == pytest.approx(mean / 2 + 1 / 2)


class TestFalseAlarms:
    """Never more than promised, however often it is looked at."""

    @pytest.mark.parametrize("alpha", [0.2, 0.05, 0.01])
    def test_of_uniform_p_values(self, alpha):
        def draw(run):
            stream = np.random.default_rng(run)
            return lambda: 1 - stream.random(8)

        assert false_alarms(1500, 30, alpha, draw) <= most(alpha, 1500)

    def test_of_larger_ones_fewer(self):
        def draw(run):
            stream = np.random.default_rng(run)
            return lambda: np.sqrt(1 - stream.random(8))

        assert false_alarms(300, 20, 0.2, draw) <= 0.05

    def test_of_p_values_that_are_stepped(self):
        """Of few different values, as the limits of a small floor are."""
        limits = np.array([0.22, 0.3, 0.5, 0.9, 1.0])

        def draw(run):
            stream = np.random.default_rng(run)
            return lambda: limits[np.searchsorted(limits, 1 - stream.random(8))]

        assert false_alarms(800, 30, 0.05, draw) <= most(0.05, 800)

    def test_of_p_values_that_depend_on_the_past(self):
        """Uniform given those before, but where they are spread depends on whether the last step was a small one."""

        def draw(run):
            stream = np.random.default_rng(run)
            last = [1.0]

            def step():
                p = 1 - stream.random(8)
                if last[0] < 0.5:
                    p = np.ceil(p * 4) / 4
                last[0] = float(p.min())
                return p

            return step

        assert false_alarms(800, 30, 0.05, draw) <= most(0.05, 800)

    def test_the_expected_evidence_never_grows(self):
        """The mean over many runs stays at 1 or below, at every step; it is what Ville's inequality is about."""
        draw, runs = np.random.default_rng(1), 3000
        sums = np.zeros(5)
        for _ in range(runs):
            alarm = Alarm(0.5)
            for step in range(5):
                alarm = alarm.fed((1 - draw.random(3)).tolist())
                sums[step] += min(alarm.evidence, 1e3)
        assert (sums / runs <= 1.15).all()


def needed(p: float, clean_steps: int) -> int:
    """Samples of one step with this p-value after which an alarm at 5e-5 is raised."""
    before = after([[1.0] * 16] * clean_steps, 5e-5)
    return next(count for count in range(1, 100) if before.fed([p] * count).raised)


class TestDelays:
    @pytest.mark.parametrize(
        ("p", "at_first", "later"),
        [(1 / 65, 4, 6), (1 / 257, 3, 5), (0.223, 11, 17), (0.0625, 6, 9), (1e-6, 2, 3), (1e-15, 1, 1)],
    )
    def test_samples_that_are_needed_are_as_the_docstring_says(self, p, at_first, later):
        assert needed(p, 0) == at_first
        assert needed(p, 100) == later

    @pytest.mark.parametrize(("p", "within"), [(1e-6, 2), (1e-4, 2), (1e-3, 3), (0.01, 8)])
    def test_a_hard_fault_is_seen_within_a_few_samples(self, p, within):
        assert after([[p] * within], alpha=1e-3).raised

    def test_a_fault_of_few_samples_is_seen_among_many(self):
        assert after([[1e-6] * 3 + [0.7] * 29], alpha=1e-3).raised

    def test_two_of_sixteen_are_seen_within_three_steps(self):
        assert after([*[[1.0] * 16] * 3, *[[1e-3] * 2 + [1.0] * 14] * 3], alpha=5e-5).raised

    def test_a_fault_after_a_long_clean_run_is_seen_as_soon(self):
        draw = np.random.default_rng(5)
        clean = [(1 - draw.random(8)).tolist() for _ in range(300)]
        alarm = after(clean, alpha=1e-3)
        assert not alarm.raised
        assert alarm.fed([1e-6] * 6).raised

    def test_a_weak_fault_is_seen_in_the_end(self):
        """P-values that are a third of what they should be."""
        draw = np.random.default_rng(6)
        alarm, steps = Alarm(1e-3), 0
        while not alarm.raised and steps < 60:
            alarm, steps = alarm.fed((0.3 * (1 - draw.random(8))).tolist()), steps + 1
        assert alarm.raised
        assert steps <= 6
