"""`Look`: distances from the honest reference, and how much of them a hypothesis takes away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.parity.hypothesis import AS_STATED, Hypothesis, Reading, Weights
from lockstep.parity.observation import Observation, Sample
from lockstep.parity.probe import ENOUGH, IMPOSSIBLE, Look
from lockstep.parity.side import CannotAsk

RAW = Hypothesis(Reading("raw"))
LOGPROBS = st.floats(-20, 0, width=32)


def series(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def sample(name: str, sampler: np.ndarray | None, trainer: np.ndarray | None = None) -> Sample:
    """A completion of as many tokens as the sampler reports; the trainer agrees unless told otherwise."""
    assert sampler is not None
    ids = np.arange(len(sampler), dtype=np.int32)
    return Sample(name, ids[:1], ids, sampler, sampler.copy() if trainer is None else trainer)


@dataclass
class Told:
    """A reference that says what it was told, and keeps what it was asked."""

    honest: Sequence[np.ndarray]
    under: Sequence[np.ndarray] | Callable[[Hypothesis], Sequence[np.ndarray]] = ()
    asked: list[tuple[list[str], Hypothesis]] = field(default_factory=list)
    versions: tuple[int, ...] = (0, 1)
    names: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ("embedding", "head")

    def score(self, samples: Sequence[Sample], hypothesis: Hypothesis) -> list[np.ndarray]:
        self.asked.append(([s.id for s in samples], hypothesis))
        if hypothesis == AS_STATED:
            return list(self.honest)
        return list(self.under(hypothesis) if callable(self.under) else self.under)


def look_at(samples: Sequence[Sample], honest: Sequence[np.ndarray], under: Sequence[np.ndarray] = ()) -> Look:
    return Look(Observation(1, samples), Told(honest, under))


def one(mine: np.ndarray, honest: np.ndarray, grain: float = 0.0) -> Look:
    return replace(look_at([sample("a", mine)], [honest]), grain=grain)


class TestScore:
    def test_without_a_reference_it_cannot_be_asked(self):
        with pytest.raises(CannotAsk, match="reference: none was given"):
            Look(Observation(1, [sample("a", series(-1))])).score()

    def test_without_comparable_samples_it_cannot_be_asked(self):
        lone = Sample("a", np.arange(1), np.arange(2), series(-1, -2))
        told = Told([])
        for samples in ([], [lone]):
            with pytest.raises(CannotAsk, match="none can be compared"):
                Look(Observation(1, samples), told).score()
        assert told.asked == []

    def test_the_honest_series_are_asked_for_once(self):
        told = Told([series(-1)], [series(-2)])
        look = Look(Observation(1, [sample("a", series(-1))]), told)
        assert look.score() is look.score(AS_STATED)
        look.distance("sampler")
        look.deviates("trainer")
        assert [hypothesis for _, hypothesis in told.asked] == [AS_STATED]

    def test_each_hypothesis_is_asked_for_by_itself(self):
        told = Told([series(-1)], lambda h: [series(-9 if h == RAW else -8)])
        look = Look(Observation(1, [sample("a", series(-1))]), told)
        assert look.score(RAW)[0].tolist() == [-9]
        assert look.score(Hypothesis(weights=Weights(version=0)))[0].tolist() == [-8]
        assert look.score()[0].tolist() == [-1]

    @pytest.mark.parametrize(
        ("sampler", "trainer"),
        [
            (series(-1, np.nan), series(-1, -1)),
            (series(-1, -1), series(-1, -np.inf)),
            (series(-1, -1), series(-1)),
        ],
    )
    def test_samples_that_cannot_be_subtracted_take_no_part(self, sampler, trainer):
        told = Told([series(-1)])
        look = Look(Observation(1, [sample("bad", sampler, trainer), sample("good", series(-1))]), told)
        assert [s.id for s in look.samples] == ["good"]
        look.score()
        assert told.asked == [(["good"], AS_STATED)]
        assert look.distance("sampler").shape == (1,)

    def test_completions_without_tokens_are_not_scored(self):
        """There is nothing to score in them, and a model's forward refuses them."""
        told = Told([series(-1)])
        look = Look(Observation(1, [sample("empty", series()), sample("good", series(-1))]), told)
        look.score()
        assert told.asked == [(["good"], AS_STATED)]
        with pytest.raises(CannotAsk, match="none can be compared"):
            Look(Observation(1, [sample("empty", series())]), told).score()

    def test_what_the_reference_lacks_is_passed_on(self):
        def lacks(_: Hypothesis) -> list[np.ndarray]:
            raise CannotAsk("version 7: not held")

        look = Look(Observation(1, [sample("a", series(-2))]), Told([series(-1)], lacks))
        with pytest.raises(CannotAsk, match="version 7"):
            look.explained(RAW)


class TestDistance:
    def test_it_sums_over_the_tokens_of_each_sample(self):
        samples = [sample("a", series(-1, -2, -3)), sample("b", series(-4))]
        look = look_at(samples, [series(-1.5, -1.5, -3), series(-4)])
        assert look.distance("sampler").tolist() == [1.0, 0.0]

    def test_each_side_has_its_own(self):
        both = replace(sample("a", series(-1, -1), series(-1, -3)), again=series(-2, -2))
        look = look_at([both], [series(-1, -1)])
        assert look.distance("sampler").tolist() == [0.0]
        assert look.distance("trainer").tolist() == [2.0]
        assert look.distance("again").tolist() == [2.0]

    def test_from_another_series_no_reference_is_needed(self):
        look = Look(Observation(1, [sample("a", series(-1, -2))]))
        assert look.distance("sampler", [series(-2, -2)]).tolist() == [1.0]

    @pytest.mark.parametrize("honest", [-np.inf, np.nan, -1e30, np.inf])
    def test_an_impossible_token_counts_a_finite_amount(self, honest):
        assert one(series(-1, -1), series(honest, -1)).distance("sampler").tolist() == [IMPOSSIBLE]

    def test_what_both_sides_call_impossible_is_no_distance(self):
        far = replace(sample("a", series(-1, -1)), again=series(-np.inf, -1))
        assert look_at([far], [series(-np.inf, -1)]).distance("again").tolist() == [0.0]

    def test_a_zero_of_either_sign_is_the_same_number(self):
        assert not one(series(0.0), series(-0.0)).deviates("sampler")

    @given(st.lists(st.tuples(LOGPROBS, LOGPROBS | st.just(-np.inf)), min_size=1, max_size=8))
    def test_it_lies_between_nothing_and_all_tokens_impossible(self, pairs):
        mine, honest = (series(*side) for side in zip(*pairs, strict=True))
        (far,) = one(mine, honest).distance("sampler")
        assert 0 <= far <= IMPOSSIBLE * len(mine)
        assert far >= IMPOSSIBLE * np.isinf(honest).sum()
        if np.isfinite(honest).all():
            assert one(honest, mine).distance("sampler") == [far]


class TestGrain:
    def test_noise_of_the_same_length_is_taken_off(self):
        assert one(series(-1, -1), series(-1.5, -1), 0.125).distance("sampler").tolist() == [0.25]

    def test_a_quiet_sample_does_not_hide_another(self):
        samples = [sample("quiet", series(-1, -1)), sample("loud", series(-1, -1))]
        look = replace(look_at(samples, [series(-1, -1), series(-2, -1)]), grain=0.25)
        assert look.distance("sampler").tolist() == [0.0, 0.5]

    def test_noise_alone_is_no_deviation(self):
        mine, honest = series(-1, -1.25), series(-1.25, -1)
        assert one(mine, honest).deviates("sampler")
        assert not one(mine, honest, 0.25).deviates("sampler")

    @given(st.lists(st.tuples(LOGPROBS, LOGPROBS), min_size=1, max_size=8), st.floats(0, 2), st.floats(0, 2))
    def test_more_of_it_never_adds_distance(self, pairs, some, more):
        mine, honest = (series(*side) for side in zip(*pairs, strict=True))
        (near,) = one(mine, honest, some + more).distance("sampler")
        (far,) = one(mine, honest, some).distance("sampler")
        assert 0 <= near <= far


class TestDeviates:
    @given(LOGPROBS.filter(lambda x: x < 0))
    def test_on_an_exact_pair_the_last_bit_is_enough(self, value):
        mine = series(value)
        assert one(mine, np.nextafter(mine, np.float32(-np.inf))).deviates("sampler")
        assert not one(mine, mine.copy()).deviates("sampler")

    def test_a_side_alone_may_deviate(self):
        look = look_at([sample("a", series(-1), series(-2))], [series(-1)])
        assert not look.deviates("sampler")
        assert look.deviates("trainer")


class TestExplained:
    @pytest.mark.parametrize(("under", "share"), [(-3.0, 1.0), (-2.5, 0.75), (-1.0, 0.0), (0.0, -0.5), (-5.0, 0.0)])
    def test_it_is_the_part_that_goes_away(self, under, share):
        look = look_at([sample("a", series(-3))], [series(-1)], [series(under)])
        assert look.explained(RAW) == share

    def test_where_nothing_deviates_nothing_is_asked_and_nothing_explained(self):
        told = Told([series(-1)], [series(-1)])
        look = Look(Observation(1, [sample("a", series(-1))]), told)
        assert look.explained(RAW) == 0.0
        assert [hypothesis for _, hypothesis in told.asked] == [AS_STATED]

    def test_samples_are_weighed_by_their_distance(self):
        samples = [sample("a", series(-4)), sample("b", series(-2))]
        look = look_at(samples, [series(-1), series(-1)], [series(-4), series(-1)])
        assert look.explained(RAW) == 0.75

    def test_of_the_trainer_it_is_the_trainers_distance(self):
        look = look_at([sample("a", series(-1), series(-2))], [series(-1)], [series(-2)])
        assert look.explained(RAW, "trainer") == 1.0
        assert look.explained(RAW) == 0.0

    def test_making_a_token_possible_again_explains_it(self):
        look = look_at([sample("a", series(-2, -1))], [series(-np.inf, -1)], [series(-2, -1)])
        assert look.explained(RAW) == 1.0

    def test_what_noise_is_left_counts_as_explained(self):
        look = look_at([sample("a", series(-2))], [series(-1)], [series(-1.875)])
        assert look.explained(RAW) == 0.875
        assert replace(look, grain=0.25).explained(RAW) == 1.0

    @given(st.lists(st.tuples(LOGPROBS, LOGPROBS, LOGPROBS), min_size=1, max_size=6), st.floats(0, 1))
    def test_it_is_never_more_than_all(self, rows, grain):
        mine, honest, under = (series(*column) for column in zip(*rows, strict=True))
        look = replace(look_at([sample("a", mine)], [honest], [under]), grain=grain)
        assert look.explained(RAW) <= 1.0
        if look.deviates("sampler"):
            assert replace(look_at([sample("a", mine)], [honest], [mine]), grain=grain).explained(RAW) == 1.0
            assert replace(look_at([sample("a", mine)], [honest], [honest]), grain=grain).explained(RAW) == 0.0


class TestEvidence:
    def test_it_says_how_much_of_what_is_explained(self):
        samples = [sample("a", series(-3, -1)), sample("b", series(-1, -1))]
        honest = [series(-1, -1), series(-1, -1)]
        look = look_at(samples, honest, [series(-2.5, -1), series(-1, -1)])
        found = look.evidence("SEM01", RAW, "raw ones", figures={"version": 3})
        assert found is not None
        assert (found.code, found.explained, found.certain) == ("SEM01", 0.75, False)
        assert found.why == "raw ones: this explains 75.0% of 0.5 nats a token"
        assert found.figures == {"explained": 0.75, "nats_per_token": 0.5, "version": 3}

    def test_half_of_it_is_enough_and_less_is_not(self):
        near, far = series(-1 - 2 * ENOUGH), series(-1.5 - 2**-20)
        assert look_at([sample("a", near)], [series(-1)], [series(-1.5)]).evidence("SEM01", RAW, "") is not None
        assert look_at([sample("a", series(-2))], [series(-1)], [series(-1.5 + 2**-20)]).evidence("S", RAW, "") is None
        assert look_at([sample("a", far)], [series(-1)], [series(-1)]).evidence("SEM01", RAW, "") is None

    def test_nothing_is_no_evidence(self):
        assert look_at([sample("a", series(-1))], [series(-1)], [series(-1)]).evidence("SEM01", RAW, "") is None

    def test_the_trainers_figures_are_the_trainers(self):
        look = look_at([sample("a", series(-1), series(-1.25))], [series(-1)], [series(-1.25)])
        found = look.evidence("NUM01", RAW, "narrow", "trainer")
        assert found is not None
        assert found.figures["nats_per_token"] == 0.25
