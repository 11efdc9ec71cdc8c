"""Each correction against a formula written here token by token, and what holds for all of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lockstep.config import CorrectionsConfig, parse
from lockstep.errors import ConfigError
from lockstep.train.corrections import CORRECTIONS, OWN_CAP, Cause, cap_of, require_sound

TYPES = sorted(CORRECTIONS)
SMALLEST = float(np.finfo(np.float32).smallest_subnormal)


def evaluate(config, anchor, sampler, sequence):
    """Weights (float32) and causes."""
    columns = [torch.tensor(np.array(column, np.float32)) for column in (anchor, sampler)]
    found = CORRECTIONS[config.type](*columns, torch.tensor(sequence), config)
    assert found.weights_N.dtype is torch.float32
    assert found.causes_N.dtype is torch.uint8
    return found.weights_N.tolist(), [Cause(cause) for cause in found.causes_N.tolist()]


def exponential(value):
    return math.exp(value) if value < 709 else math.inf


def expected(config, anchor, sampler, sequence):
    """Weight (float64), cause and the number that was held against a bound, of each token, in plain Python."""
    rows = []
    for t in range(len(anchor)):
        mine = [u for u in range(len(anchor)) if sequence[u] == sequence[t]]
        log_ratios = [anchor[u] - sampler[u] for u in mine]
        if config.type in ("token_tis", "sequence_tis"):
            ratio = exponential(anchor[t] - sampler[t] if config.type == "token_tis" else sum(log_ratios))
            cap = config.cap or 2.0
            rows.append((min(ratio, cap), Cause.CAPPED if ratio > cap else Cause.NONE, ratio, (cap,)))
        elif config.type == "tv_mask":
            change, cap = abs(math.exp(anchor[t]) - math.exp(sampler[t])), config.cap or 0.2
            rows.append((float(change <= cap), Cause.TV if change > cap else Cause.NONE, change, (cap,)))
        else:
            ratio = exponential(
                anchor[t] - sampler[t] if config.type == "masked" else sum(log_ratios) / len(log_ratios)
            )
            cause = Cause.TOO_LOW if ratio < config.low else Cause.TOO_HIGH if ratio > config.high else Cause.NONE
            weight = 0.0 if cause else ratio if config.type == "masked" else 1.0
            rows.append((weight, cause, ratio, (config.low, config.high)))
    return rows


def single(value):
    """The float32 that is nearest, as a Python number."""
    return float(np.float32(value))


@st.composite
def cases(draw):
    """Whole sequences of 1-6 tokens, log ratios from none at all to far beyond what float32 or float64 hold."""
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    sequence = [s for s, n in enumerate(lengths) for _ in range(n)]
    moved = st.sampled_from([0.0, 1e-6]) | st.floats(-3, 3) | st.floats(-400, 400)
    sampler = [single(draw(st.floats(-30, 0))) for _ in sequence]
    anchor = [min(single(s + draw(moved)), 0.0) for s in sampler]
    return anchor, sampler, sequence


@st.composite
def configs(draw):
    kind = draw(st.sampled_from(TYPES))
    cap = draw(st.sampled_from([0.0, 0.01, 0.5] if kind == "tv_mask" else [0.0, 1.0, 1.5, 10.0]))
    low, high = draw(st.sampled_from([(0.5, 5.0), (0.0, 1.0), (1.0, 1.0), (0.999, 1.001), (0.1, 10.0)]))
    return CorrectionsConfig(type=kind, cap=cap, low=low, high=high)


@given(case=cases(), config=configs())
def test_every_token_follows_the_formula(case, config):
    weights, causes = evaluate(config, *case)
    for weight, cause, (want, why, found, bounds) in zip(weights, causes, expected(config, *case), strict=True):
        if any(math.isclose(found, bound, rel_tol=1e-9) and found != bound for bound in bounds):
            continue  # within rounding of a bound, either side is right
        if why is Cause.NONE and 0 <= want < SMALLEST:
            assert (weight, cause) in [(0.0, Cause.TOO_LOW), (SMALLEST, Cause.NONE)], "too small for float32"
            continue
        assert cause is why
        assert weight == pytest.approx(want, rel=1e-6, abs=SMALLEST)


@given(case=cases(), config=configs())
def test_weights_are_finite_and_zero_exactly_where_a_cause_removed_the_token(case, config):
    weights, causes = evaluate(config, *case)
    for weight, cause in zip(weights, causes, strict=True):
        assert math.isfinite(weight) and weight >= 0
        assert (weight == 0) == (cause > Cause.CAPPED)
        if cause is Cause.CAPPED:
            assert weight == single(cap_of(config))
    possible = {
        "token_tis": {Cause.CAPPED, Cause.TOO_LOW},
        "sequence_tis": {Cause.CAPPED, Cause.TOO_LOW},
        "masked": {Cause.TOO_HIGH, Cause.TOO_LOW},
        "geometric": {Cause.TOO_HIGH, Cause.TOO_LOW},
        "tv_mask": {Cause.TV},
    }
    assert set(causes) <= possible[config.type] | {Cause.NONE}


@given(case=cases(), config=configs())
def test_fresh_tokens_keep_their_weight_of_exactly_one(case, config):
    _, sampler, sequence = case
    weights, causes = evaluate(config, sampler, sampler, sequence)
    assert weights == [1.0] * len(sampler)
    assert set(causes) == {Cause.NONE}


@pytest.mark.parametrize("kind", ["sequence_tis", "geometric"])
@given(case=cases())
def test_corrections_of_sequences_treat_their_tokens_alike(kind, case):
    weights, causes = evaluate(CorrectionsConfig(type=kind), *case)
    for s in set(case[2]):
        mine = [t for t, other in enumerate(case[2]) if other == s]
        assert len({(weights[t], causes[t]) for t in mine}) == 1


@pytest.mark.parametrize("kind", TYPES)
@given(case=cases())
def test_a_sequence_is_judged_alone(kind, case):
    """Where the batch is cut into microbatches moves no weight."""
    anchor, sampler, sequence = case
    config = CorrectionsConfig(type=kind)
    whole = evaluate(config, *case)
    for s in set(sequence):
        mine = [t for t, other in enumerate(sequence) if other == s]
        alone = evaluate(config, [anchor[t] for t in mine], [sampler[t] for t in mine], [0] * len(mine))
        assert alone == tuple([column[t] for t in mine] for column in whole)


def by_hand(kind, log_ratios, sequence, **bounds):
    sampler = [-2.0] * len(log_ratios)
    anchor = [s + lr for s, lr in zip(sampler, log_ratios, strict=True)]
    weights, causes = evaluate(CorrectionsConfig(type=kind, **bounds), anchor, sampler, sequence)
    return [round(w, 4) for w in weights], [cause.name.lower() for cause in causes]


def test_the_table_by_hand():
    """Two sequences: ratios 4 and 1/2 (product 2, mean 1.41), then 1/4 alone."""
    log_ratios, sequence = [math.log(4), -math.log(2), -math.log(4)], [0, 0, 1]
    assert by_hand("token_tis", log_ratios, sequence, cap=2.0) == ([2.0, 0.5, 0.25], ["capped", "none", "none"])
    assert by_hand("sequence_tis", log_ratios, sequence, cap=1.5) == ([1.5, 1.5, 0.25], ["capped", "capped", "none"])
    assert by_hand("masked", log_ratios, sequence, low=0.4, high=3.0) == (
        [0.0, 0.5, 0.0],
        ["too_high", "none", "too_low"],
    )
    assert by_hand("geometric", log_ratios, sequence, low=0.4, high=1.5) == (
        [1.0, 1.0, 0.0],
        ["none", "none", "too_low"],
    )
    # probabilities e^-2 = 0.1353 -> 0.5413, 0.0677, 0.0338: changes of 0.406, 0.068, 0.102
    assert by_hand("tv_mask", log_ratios, sequence, cap=0.1) == ([0.0, 1.0, 0.0], ["tv", "none", "tv"])


def test_bounds_belong_to_what_is_kept():
    assert by_hand("masked", [0.0], [0], low=1.0, high=1.0) == ([1.0], ["none"])
    assert by_hand("geometric", [0.0], [0], low=1.0, high=1.0) == ([1.0], ["none"])
    assert by_hand("token_tis", [0.0], [0], cap=1.0) == ([1.0], ["none"])


def test_a_ratio_that_float32_cannot_hold_is_removed_and_says_so():
    assert by_hand("sequence_tis", [-60.0, -60.0], [0, 0]) == ([0.0, 0.0], ["too_low", "too_low"])
    assert by_hand("sequence_tis", [900.0, 900.0], [0, 0]) == ([2.0, 2.0], ["capped", "capped"])
    assert by_hand("token_tis", [-60.0, 0.0], [0, 0])[1] == ["none", "none"]


def test_the_tv_of_a_token_is_a_lower_bound_of_the_tv_of_the_distributions():
    draw = np.random.Generator(np.random.Philox(5))
    for _ in range(200):
        logits = draw.normal(0, 2, (2, 7))
        p, q = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        for cap in (0.05, 0.2, 0.5):
            config = CorrectionsConfig(type="tv_mask", cap=cap)
            weights, _ = evaluate(config, np.log(p), np.log(q), list(range(7)))
            if 0.5 * np.abs(p - q).sum() <= cap - 1e-6:
                assert weights == [1.0] * 7, "never removed within the cap"


def test_every_type_of_the_configuration_is_in_the_table():
    annotation = CorrectionsConfig.model_fields["type"].annotation
    assert annotation is not None
    assert {"none", *CORRECTIONS} == set(annotation.__args__)  # type: ignore[attr-defined]
    assert {kind: cap_of(CorrectionsConfig(type=kind)) for kind in OWN_CAP} == OWN_CAP  # type: ignore[arg-type]
    assert cap_of(CorrectionsConfig(type="tv_mask", cap=0.3)) == 0.3


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        (
            {"corrections": {"type": "token_tis", "cap": 0.5}},
            r"config \(corrections.cap\): .* - got 0.5, .* at least 1",
        ),
        ({"corrections": {"type": "sequence_tis", "cap": 0.5}}, r"shrink tokens that are not stale - got 0.5"),
        ({"corrections": {"type": "tv_mask", "cap": 2.0}}, r"further apart than 1 - got 2.0, expected at most 1"),
        *(
            (
                {"corrections": {"type": kind}, "loss": {"type": "gspo"}},
                rf"one ratio a sequence.* - got {kind}, expected",
            )
            for kind in ("token_tis", "masked", "tv_mask")
        ),
    ],
)
def test_corrections_that_cannot_do_what_they_say_are_refused(make, tree, says):
    with pytest.raises(ConfigError, match=says):
        require_sound(parse(tree))
    with pytest.raises(ConfigError, match=says):
        make.trainer(**tree)


@pytest.mark.parametrize("kind", ["none", *TYPES])
@pytest.mark.parametrize("loss", ["grpo", "ppo", "reinforce", "cispo"])
def test_all_others_are_accepted(kind, loss):
    require_sound(parse({"corrections": {"type": kind}, "loss": {"type": loss}}))
    require_sound(parse({"corrections": {"type": kind, "cap": 1.0}, "loss": {"type": loss}}))


@pytest.mark.parametrize("kind", ["none", "sequence_tis", "geometric"])
def test_gspo_takes_corrections_of_sequences(kind):
    require_sound(parse({"corrections": {"type": kind}, "loss": {"type": "gspo"}}))
