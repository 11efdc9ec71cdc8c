"""The checks of other frameworks: their published numbers to either side, what they do with broken series, what the
rules leave out of them and why that changes nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.harness.rules import RULES, Rule, flagged
from lockstep.parity.observation import Observation, Sample

BY_NAME = {rule.name: rule for rule in RULES}
STRICT = {"prime-rl", "prime-rl mask", "slime", "slime mask"}
"""Those that compare lengths."""

logprobs = st.floats(-12.0, 0.0)
tokens = st.lists(st.tuples(logprobs, logprobs), min_size=1, max_size=12)
samples = st.lists(tokens, min_size=1, max_size=5)


def sample(sampler: Sequence[float] | None, trainer: Sequence[float] | None, count: int | None = None) -> Sample:
    """A sample of `count` tokens (of as many as the trainer has scored)."""
    count = len(trainer or sampler or ()) if count is None else count
    ids = np.arange(count, dtype=np.int32)
    said, scored = (None if s is None else np.array(s, np.float64) for s in (sampler, trainer))
    return Sample("s", np.arange(3, dtype=np.int32), ids, said, scored)


def step(*given_samples: Sample) -> Observation:
    return Observation(1, given_samples)


def of(*pairs: tuple[Sequence[float], Sequence[float]]) -> Observation:
    """A step of samples, each a sampler's and a trainer's series."""
    return step(*(sample(*pair) for pair in pairs))


def apart(*differences: float, at: float = -3.0) -> Observation:
    """One sample whose trainer is off by these from a sampler that says `at`."""
    return of(([at] * len(differences), [at + d for d in differences]))


def probabilities(*pairs: tuple[float, float]) -> Observation:
    """One sample, a sampler's and a trainer's probability for each token."""
    return of(([math.log(s) for s, _ in pairs], [math.log(t) for _, t in pairs]))


def flags(name: str, observation: Observation) -> bool:
    return BY_NAME[name].flags(observation)


def test_every_framework_has_a_rule_with_a_source_of_its_own() -> None:
    assert len(BY_NAME) == len(RULES), "names are unique"
    for framework in ("verl", "NeMo-RL", "prime-rl", "slime", "TRL"):
        assert any(rule.name == framework for rule in RULES)
    for rule in RULES:
        assert rule.source.startswith(rule.name.split()[0]) and rule.what
        assert "|" not in rule.source + rule.what, "they are cells and footnotes of Markdown"


def test_a_bound_is_not_called_an_alarm() -> None:
    assert {rule.name for rule in RULES if not rule.alarm} == {"prime-rl mask", "slime mask", "TRL"}


# -- their numbers


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([(0.5, 0.509)], False),
        ([(0.5, 0.5099)], False),
        ([(0.5, 0.5101)], True),
        ([(0.5, 0.4899)], True),
        ([(0.5, 0.5199), (0.3, 0.3)], False),  # a mean over tokens
        ([(0.5, 0.5203), (0.3, 0.3)], True),
        ([(0.5, 0.505)], False),  # 0.005: what is called normal
        ([(1e-6, 0.009)], False),  # rare tokens hardly count, whatever their ratio
    ],
)
def test_verl_looks_at_the_mean_difference_of_probabilities(pairs, expected: bool) -> None:
    assert flags("verl", probabilities(*pairs)) == expected


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ((0.0999,), False),
        ((0.1001,), True),  # the mean log ratio, upwards
        ((-0.1001,), True),  # and downwards
        ((0.5, -0.5), False),  # mean log ratio 0, mean ratio 1.13, chi-squared (e + 1/e) / 2 - 1 = 0.54
        ((0.65, -0.65), False),  # cosh 1.3 - 1 = 0.971
        ((0.67, -0.67), True),  # cosh 1.34 - 1 = 1.040
        ((0.0,) * 20, False),
    ],
)
def test_verl_warns_of_kl_and_chi_squared(differences, expected: bool) -> None:
    assert flags("verl health", apart(*differences)) == expected


def test_verl_warns_of_a_mean_weight_that_the_mean_log_ratio_does_not_show() -> None:
    high = [math.log(4.0), *[-math.log(4.0) / 9] * 9]  # mean log ratio 0; mean (4 + 9 * 0.857) / 10 = 1.17
    assert flags("verl health", apart(*high)), "16 / 10 + 0.9 * 0.735 - 1 = 1.26: chi-squared"
    assert flags("verl health", apart(-30.0, 30.0)), "clamped at exp(20), not infinite"


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ((math.log(1.0499),), False),
        ((math.log(1.0501),), True),
        ((-math.log(1.0501),), True),  # the distance, not the ratio
        ((math.log(1.0998), 0.0), False),
        ((math.log(1.1002), 0.0), True),
        ((3.0, *[0.0] * 99), True),  # one token in a hundred: 1 + 19.09 / 100 = 1.19
        ((1.7, *[0.0] * 99), False),  # 1 + 4.47 / 100 = 1.0447
    ],
)
def test_nemo_looks_at_the_mean_factor_between_probabilities(differences, expected: bool) -> None:
    assert flags("NeMo-RL", apart(*differences)) == expected


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ((0.0440,), False),  # forward e^d - 1 - d = 0.000982
        ((0.0445,), True),  # forward 0.001005
        ((-0.0440,), False),  # backward 0.000982
        ((-0.0445,), True),  # forward only 0.000976, but backward 0.001005
        ((0.0622, 0.0), False),  # 0.001976 / 2
        ((0.0630, 0.0), True),  # 0.002027 / 2
    ],
)
def test_nemo_looks_at_divergence_both_ways(differences, expected: bool) -> None:
    assert flags("NeMo-RL KL", apart(*differences)) == expected


@pytest.mark.parametrize(
    ("difference", "expected"),
    [
        (0.0313, False),  # 0.000495, printed 0.0005
        (0.0327, False),  # 0.0005405, printed 0.0005
        (0.0333, True),  # 0.0005607, printed 0.0006
        (-0.0333, False),  # 0.0005483, printed 0.0005
        (-0.0336, True),  # 0.0005582, printed 0.0006
        (0.0, False),
    ],
)
def test_prime_reads_its_divergence_from_a_log_with_four_decimals(difference: float, expected: bool) -> None:
    assert flags("prime-rl", apart(difference)) == expected
    assert flags("prime-rl", apart(*[difference] * 7)) == expected, "a mean over tokens"


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        ((0.5, 0.6999), False),
        ((0.5, 0.7001), True),
        ((0.5, 0.3001), False),
        ((0.5, 0.2999), True),
        ((0.001, 0.2), False),  # a ratio of 200
    ],
)
def test_prime_masks_a_token_by_its_probability(pair: tuple[float, float], expected: bool) -> None:
    assert flags("prime-rl mask", probabilities((0.1, 0.1), pair, (0.9, 0.9))) == expected


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([([0.0], [-0.1])], False),  # at the bound
        ([([0.0], [-0.1001])], True),
        ([([-1.0, -1.0], [-0.8001, -1.0])], False),
        ([([-1.0, -1.0], [-0.7998, -1.0])], True),
        # 0.9 over one token, 0 over nine: the mean over samples is 0.45, that over tokens 0.09
        ([([-1.0], [-1.9]), ([-1.0] * 9, [-1.0] * 9)], True),
        ([([-1.0], [-1.19]), ([-1.0] * 9, [-1.0] * 9)], False),
    ],
)
def test_slime_weighs_samples_alike(pairs, expected: bool) -> None:
    assert flags("slime", of(*pairs)) == expected


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [(1.0, False), (1.9999, False), (2.0001, True), (0.5001, False), (0.4999, True), (1e-9, True)],
)
def test_slime_masks_a_token_by_its_ratio(ratio: float, expected: bool) -> None:
    assert flags("slime mask", apart(0.0, math.log(ratio), 0.0)) == expected


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ((math.log(2.9999),), False),
        ((math.log(3.0001),), True),
        ((math.log(3.0001), -0.1), False),  # the ratio of the sequence, not of a token
        ((0.12,) * 9, False),  # exp 1.08 = 2.94
        ((0.12,) * 10, True),  # exp 1.2 = 3.32
        ((-5.0,) * 10, False),  # there is no lower bound by default
    ],
)
def test_trl_masks_a_sequence_by_its_product(differences, expected: bool) -> None:
    assert flags("TRL", apart(*differences)) == expected


def test_trl_looks_at_each_sequence_by_itself() -> None:
    low, high = ([-3.0] * 10, [-3.12] * 10), ([-3.12] * 10, [-3.0] * 10)
    assert flags("TRL", of(low, high)) and not flags("TRL", of(low, low))


# -- what they see of broken series


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize(
    "nothing",
    [
        step(),
        of(([], [])),
        step(sample(None, [-1.0, -9.0])),
        step(sample([-1.0, -9.0], None)),
        step(replace(sample([-1.0], [-9.0]), mask=np.zeros(1, bool))),
    ],
    ids=["no samples", "no tokens", "no sampler", "no trainer", "no token counts"],
)
def test_where_nothing_can_be_compared_nothing_is_flagged(rule: Rule, nothing: Observation) -> None:
    assert not rule.flags(nothing)


def test_only_those_that_compare_lengths_flag_one_that_changes_nothing_else() -> None:
    fine, broken = ([-1.0] * 40, [-1.0] * 40), sample([-1.0, -1.0], [-1.0, -1.0, -1e-9])  # 0.0 is very nearly right
    assert set(flagged(step(sample(*fine), broken))) == STRICT


def test_a_missing_logprob_is_compared_as_probability_one() -> None:
    padded, said = step(sample([-1.0], [-1.0, -2.0])), of(([-1.0, 0.0], [-1.0, -2.0]))
    for rule in RULES:
        assert rule.flags(padded) == (rule.name in STRICT or rule.flags(said)), rule.name
    assert flags("verl", padded) and flags("NeMo-RL", padded) and not flags("TRL", padded)


def test_a_surplus_logprob_is_cut_off() -> None:
    surplus, cut = step(sample([-1.0, -1.0, -7.0], [-1.0, -1.0])), of(([-1.0, -1.0], [-1.0, -1.0]))
    assert set(flagged(surplus)) == STRICT and not flagged(cut)


def test_a_trainer_that_has_not_scored_its_own_tokens_is_left_out() -> None:
    assert set(flagged(step(sample([-1.0] * 3, [-9.0] * 2, count=3)))) == STRICT


def test_nan_passes_everywhere_but_where_the_good_is_asserted() -> None:
    assert set(flagged(of(([-1.0, math.nan], [-1.0, -1.0])))) == {"slime", "slime mask"}
    assert set(flagged(of(([-1.0, -1.0], [math.nan, -1.0])))) == {"slime", "slime mask"}


def test_a_token_that_the_trainer_finds_impossible_is_no_reason_for_trl() -> None:
    seen = set(flagged(of(([math.log(0.5)], [-math.inf]))))
    assert "TRL" not in seen and {"verl", "NeMo-RL", "NeMo-RL KL", "prime-rl", "prime-rl mask", "slime"} <= seen


def test_only_tokens_that_the_loss_counts_are_looked_at() -> None:
    one = sample([-1.0, -1.0, -1.0], [-1.0, -9.0, -1.0])
    assert flagged(step(one))
    assert not flagged(step(replace(one, mask=np.array([True, False, True]))))
    assert flagged(step(replace(one, mask=np.array([True, False])))) == flagged(step(one)), "no mask of these tokens"


def test_flagged_names_the_rules_in_their_order() -> None:
    everything = flagged(of(([-9.0] * 3, [-0.1] * 3)))
    assert everything == [rule.name for rule in RULES]
    assert flagged(of(([-9.0] * 3, [-9.0] * 3))) == []


def test_huge_differences_raise_no_warning() -> None:
    assert flagged(of(([-1e30, -1e30], [0.0, -1e38])))


# -- whatever the series


@given(samples)
def test_equal_series_are_never_flagged(given_samples) -> None:
    assert flagged(of(*(([s for s, _ in one], [s for s, _ in one]) for one in given_samples))) == []


@given(samples, st.randoms())
def test_the_order_of_samples_does_not_matter(given_samples, random) -> None:
    pairs = [([s for s, _ in one], [t for _, t in one]) for one in given_samples]
    shuffled = random.sample(pairs, len(pairs))
    margin = 1e-9  # sums round differently in another order
    assert _firm(pairs, margin) <= set(flagged(of(*shuffled))) <= _firm(pairs, -margin)


def _firm(pairs, margin: float) -> set[str]:
    """What is flagged of differences that are smaller (or, with a negative margin, larger) by a little."""
    nearer = [(s, [b + (a - b) * margin for a, b in zip(s, t, strict=True)]) for s, t in pairs]
    return set(flagged(of(*nearer)))


@given(tokens)
def test_symmetric_rules_do_not_ask_who_is_who(given_tokens) -> None:
    s, t = [s for s, _ in given_tokens], [t for _, t in given_tokens]
    for name in ("verl", "NeMo-RL", "NeMo-RL KL", "prime-rl mask", "slime"):
        assert flags(name, of((s, t))) == flags(name, of((t, s))), name


@given(tokens)
def test_series_are_judged_in_float32_too_and_never_written_to(given_tokens) -> None:
    sampler, trainer = np.array(given_tokens, np.float32).T.copy()
    for series in (sampler, trainer):
        series.setflags(write=False)
    one = replace(sample(None, None, count=len(given_tokens)), sampler=sampler, trainer=trainer)
    assert flagged(step(one)) == flagged(of((sampler.tolist(), trainer.tolist())))


@given(tokens)
def test_two_terms_of_verls_health_check_cannot_fire(given_tokens) -> None:
    """They are of weights clamped to [0.5, 2], so that leaving them out loses nothing."""
    weights = np.clip(np.exp([t - s for s, t in given_tokens]), 0.5, 2.0)
    assert weights.std() <= 0.75 + 1e-12
    assert weights.mean() ** 2 / np.square(weights).mean() >= 0.64 - 1e-12


@given(tokens)
def test_the_third_divergence_of_nemo_is_never_above_both_others(given_tokens) -> None:
    s, t = np.array(given_tokens).T

    def k3(x: np.ndarray) -> float:
        return float((np.expm1(x) - x).mean())

    middle = np.log((np.exp(s) + np.exp(t)) / 2)
    assert (k3(t - middle) + k3(s - middle)) / 2 <= max(k3(t - s), k3(s - t)) + 1e-12


@given(tokens, st.sampled_from(["verl", "NeMo-RL", "NeMo-RL KL", "prime-rl", "slime"]))
def test_a_step_diluted_by_tokens_that_agree_is_flagged_no_more(given_tokens, name: str) -> None:
    one = ([s for s, _ in given_tokens], [t for _, t in given_tokens])
    agreeing = ([-2.0] * 30, [-2.0] * 30)
    assert flags(name, of(one, agreeing)) <= flags(name, of(one))
