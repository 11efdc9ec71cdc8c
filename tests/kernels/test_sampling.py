"""Sampling: the right distribution, the right support, the promised logprob, and no dependence on the batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.core import SamplingParams, Support
from lockstep.errors import NumericsError
from lockstep.kernels.adjust import History, adjusted
from lockstep.kernels.head import Targets, head_logits, target_logprobs
from lockstep.kernels.sampling import sample

V = 40


def _logits(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, V, generator=torch.Generator().manual_seed(seed)) * 3


params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 0.7, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 3, 20, 100]),
    top_p=st.sampled_from([1.0, 0.9, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.05, 1.0]),
)


@settings(max_examples=80, deadline=None)
@given(
    rows=st.lists(st.tuples(params, st.floats(0, 1, exclude_max=True)), min_size=1, max_size=12),
    seed=st.integers(0, 50),
)
def test_a_row_is_sampled_alone_as_in_company(rows: list[tuple[SamplingParams, float]], seed: int) -> None:
    logits = _logits(len(rows), seed)
    together = sample(logits, [p for p, _ in rows], [u for _, u in rows])
    for i, (p, u) in enumerate(rows):
        alone = sample(logits[i : i + 1], [p], [u])
        assert alone.token_ids[0] == together.token_ids[i]
        assert alone.logprobs.view(np.int32)[0] == together.logprobs.view(np.int32)[i]
        kept = together.supports[i]
        assert (kept is None) == (not p.truncates)
        if kept is not None:
            assert together.token_ids[i] in kept
            assert alone.supports[0] is not None and np.array_equal(alone.supports[0], kept)


def test_the_frequencies_are_those_of_the_distribution() -> None:
    logits = _logits(1)
    n = 20_000
    got = sample(logits.expand(n, V), [SamplingParams(temperature=0.7)] * n, [(i + 0.5) / n for i in range(n)])
    counts = np.bincount(got.token_ids, minlength=V) / n
    expected = (logits[0].double() / 0.7).softmax(-1).numpy()
    assert np.abs(counts - expected).max() < 1.5 / n  # stratified uniforms: off by at most one draw at either end
    assert np.allclose(got.logprobs, np.log(expected)[got.token_ids], atol=1e-5)


def test_each_filter_keeps_what_its_definition_says() -> None:
    logits = torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.0]]).log_softmax(-1)
    p = logits.exp()[0]

    def kept(**settings: float | int) -> list[int]:
        ids = sample(logits, [SamplingParams(**settings)], [0.0]).supports[0]  # type: ignore[arg-type]
        assert ids is not None
        return ids.tolist()

    assert kept(top_k=2) == [0, 1]
    assert kept(top_p=float(p[0]) - 0.01) == [0]
    assert kept(top_p=float(p[0]) + 0.01) == [0, 1]
    assert kept(min_p=float(p[2] / p[0]) - 0.001) == [0, 1, 2]
    assert kept(top_k=4, top_p=0.999, min_p=0.2) == [0, 1]


def test_the_logprob_is_renormalised_over_the_support() -> None:
    got = sample(_logits(1), [SamplingParams(top_k=1)], [0.5])
    assert got.logprobs[0] == 0.0


def test_the_ends_of_the_unit_interval_never_leave_the_support() -> None:
    logits = torch.full((1, V), -200.0)
    logits[0, 5:7] = 0.0
    ends = [0.0, (2**24 - 1) / 2**24]
    got = [int(sample(logits, [SamplingParams()], [u]).token_ids[0]) for u in ends]
    assert got == [5, 6]


def test_greedy_takes_the_largest_and_reports_the_raw_logprob() -> None:
    logits = _logits(3)
    got = sample(logits, [SamplingParams(temperature=0.0)] * 3, [0.9] * 3)
    assert got.token_ids.tolist() == logits.argmax(-1).tolist()
    assert np.allclose(got.logprobs, logits.log_softmax(-1).amax(-1).numpy())


def test_the_trainer_finds_the_same_bits_given_the_recorded_support() -> None:
    g = torch.Generator().manual_seed(3)
    hidden, weight = torch.randn(30, 16, generator=g), torch.randn(V, 16, generator=g)
    p = SamplingParams(temperature=0.7, top_p=0.8, top_k=11)
    got = sample(head_logits(hidden, weight), [p] * 30, np.linspace(0, 0.999, 30).tolist())
    kept = [s for s in got.supports if s is not None]
    support = Support(np.concatenate(kept), np.cumsum([0, *map(len, kept)]))
    ids = torch.from_numpy(got.token_ids)
    scored, _ = target_logprobs(hidden, weight, Targets(ids, 0.7, support))
    assert np.array_equal(scored.numpy().view(np.int32), got.logprobs.view(np.int32))
    raw, _ = target_logprobs(hidden, weight, Targets(ids, 1.0))
    assert not np.allclose(raw.numpy(), got.logprobs, atol=1e-3)


ids = st.integers(0, V - 1)
adjusting = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    top_k=st.sampled_from([0, 5]),
    top_p=st.sampled_from([1.0, 0.9]),
    presence_penalty=st.sampled_from([0.0, 1.5]),
    frequency_penalty=st.sampled_from([0.0, -0.4]),
    repetition_penalty=st.sampled_from([1.0, 1.2]),
    logit_bias=st.dictionaries(ids, st.floats(-9, 9), max_size=3).map(lambda found: tuple(sorted(found.items()))),
    bad_words=st.lists(st.lists(ids, min_size=1, max_size=2).map(tuple), max_size=20).map(tuple),
)
tokens = st.lists(ids, max_size=6).map(lambda found: np.array(found, np.int32))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(adjusting, tokens, tokens), min_size=1, max_size=6), st.integers(0, 30))
def test_sampler_and_trainer_agree_whatever_is_adjusted(
    rows: list[tuple[SamplingParams, np.ndarray, np.ndarray]], seed: int
) -> None:
    """All kinds in one call of the sampler; the trainer gets each row with its own temperature and support."""
    g = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(len(rows), 16, generator=g), torch.randn(V, 16, generator=g)
    histories = [History(*row) for row in rows]
    uniforms = torch.rand(len(rows), generator=g).tolist()
    logits = head_logits(hidden, weight)
    got = sample(logits, [p for p, _, _ in rows], uniforms, histories)
    for i, (history, kept) in enumerate(zip(histories, got.supports, strict=True)):
        p, token = history.params, int(got.token_ids[i])
        support = None if kept is None else Support(kept, np.array([0, len(kept)]))
        targets = Targets(torch.tensor([token]), p.temperature or 1.0, support, [history])
        scored, entropy = target_logprobs(hidden[i : i + 1], weight, targets)
        assert scored.numpy().view(np.int32)[0] == got.logprobs.view(np.int32)[i]
        assert torch.isfinite(entropy).all()
        row = adjusted(logits[i : i + 1], [history])
        assert torch.isfinite(row[0, token])
        assert kept is None or torch.isfinite(row[0, torch.from_numpy(kept).long()]).all()
        if p.greedy:
            assert token == int(row.argmax())


def test_a_bias_decides_the_greedy_choice_and_its_logprob_is_of_what_was_chosen_from() -> None:
    logits = _logits(1)
    worst = int(logits.argmin())
    p = SamplingParams(temperature=0.0, logit_bias=((worst, 50.0),))
    got = sample(logits, [p], [0.0], [History(p, np.array([1]), np.array([2]))])
    assert got.token_ids[0] == worst
    assert got.logprobs[0] > -1e-5


def test_rows_that_do_not_adjust_keep_their_bits_beside_rows_that_do() -> None:
    logits, plain = _logits(6), SamplingParams(temperature=0.7)
    p = replace(plain, repetition_penalty=1.5)
    uniforms = np.linspace(0, 0.99, 6).tolist()
    alone = sample(logits, [plain] * 6, uniforms)
    history = History(p, np.arange(V), np.arange(V))
    mixed = sample(logits, [plain, p] * 3, uniforms, [None, history] * 3)
    assert np.array_equal(alone.logprobs[::2].view(np.int32), mixed.logprobs[::2].view(np.int32))
    assert np.array_equal(alone.token_ids[::2], mixed.token_ids[::2])
    assert not np.array_equal(alone.logprobs[1::2], mixed.logprobs[1::2])


def test_a_row_that_adjusts_without_a_history_is_a_mistake_of_ours() -> None:
    p = SamplingParams(presence_penalty=1.0)
    with pytest.raises(AssertionError, match="row 1 adjusts its logits: it needs a history"):
        sample(_logits(2), [SamplingParams(), p], [0.0, 0.0])


def test_no_token_left_is_an_error() -> None:
    p = SamplingParams(bad_words=tuple((i,) for i in range(V)))
    with pytest.raises(NumericsError, match="bad_words must leave a token"):
        sample(_logits(1), [p], [0.0], [History(p, np.array([1]), np.array([], np.int32))])
