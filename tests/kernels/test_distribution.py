"""One row, one logprob: against float64, beside other rows, over supports, and the same for whoever draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lockstep.core import SamplingParams
from lockstep.kernels import distribution
from lockstep.kernels.distribution import Chosen, operators_of, score, slopes
from lockstep.kernels.sampling import sample
from lockstep.kernels.threads import using_threads

KERNELS = ("native", "reference")
SIZES = (1, 2, 15, 16, 17, 63, 64, 65, 511, 512, 513, 1024, 1500)


@pytest.fixture(params=KERNELS)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LOCKSTEP_KERNELS", request.param)
    assert (operators_of(torch.zeros(1, 1)) is None) == (request.param == "reference")
    return request.param


def _logits(rows: int, vocabulary: int, seed: int = 0, spread: float = 4.0) -> Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * spread


def _ids(rows: int, vocabulary: int, seed: int = 0) -> Tensor:
    return torch.randint(0, vocabulary, (rows,), generator=torch.Generator().manual_seed(seed))


def _supports(ids: Tensor, vocabulary: int, seed: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """A support for each row, the chosen token in it; and the mask."""
    mask = torch.rand(len(ids), vocabulary, generator=torch.Generator().manual_seed(seed)) < 0.3
    mask[torch.arange(len(ids)), ids] = True
    kept = mask.nonzero()[:, 1].int()
    return (kept, torch.cat((torch.zeros(1, dtype=torch.int64), mask.sum(1).cumsum(0)))), mask


def _bits(values: Tensor) -> list[int]:
    return values.view(torch.int32).tolist()


@pytest.mark.parametrize("supported", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.3, 2.5])
@pytest.mark.parametrize("vocabulary", SIZES)
def test_values_entropies_and_slopes_are_those_of_float64(
    kernels: str, vocabulary: int, temperature: float, supported: bool
) -> None:
    logits, ids = _logits(5, vocabulary), _ids(5, vocabulary)
    kept, mask = _supports(ids, vocabulary, 1) if supported else (None, torch.ones(5, vocabulary, dtype=torch.bool))
    chosen = Chosen(ids, temperature, kept)
    found = score(logits, chosen)
    exact = logits.double().requires_grad_()
    full = (exact / temperature).masked_fill(~mask, -1e30).log_softmax(-1)
    expected = full.gather(1, ids[:, None])[:, 0]
    torch.testing.assert_close(found.logprobs_N.double(), expected, atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(found.entropy_N.double(), -(full.exp() * full).sum(-1), atol=1e-5, rtol=1e-5)
    grad = torch.tensor([1.0, -2.0, 0.0, 0.5, 3.0])
    (slope,) = torch.autograd.grad(expected, exact, grad.double())
    for dtype, tolerance in ((torch.float32, 2e-6), (torch.bfloat16, 2**-8)):
        got = slopes(logits, chosen, found.passed, grad, dtype)
        assert got.dtype is dtype
        torch.testing.assert_close(got.double(), slope, atol=tolerance * 3 / temperature, rtol=tolerance)


@settings(max_examples=60, deadline=None)
@given(
    vocabulary=st.sampled_from(SIZES),
    rows=st.integers(1, 40),
    seed=st.integers(0, 99),
    temperature=st.sampled_from([1.0, 0.7, 1.3]),
    supported=st.booleans(),
)
def test_a_row_is_alone(vocabulary: int, rows: int, seed: int, temperature: float, supported: bool) -> None:
    """Neighbours, place, stride and threads move no bit of logprob, entropy or slope."""
    logits, ids = _logits(rows, vocabulary, seed), _ids(rows, vocabulary, seed)
    kept = _supports(ids, vocabulary, seed)[0] if supported else None
    whole = score(logits, Chosen(ids, temperature, kept))
    grad = torch.linspace(-1, 1, rows)
    slope = slopes(logits, Chosen(ids, temperature, kept), whole.passed, grad, torch.float32)
    wide = torch.cat((logits, logits), 1)[:, :vocabulary]
    with using_threads(2):
        again = score(wide, Chosen(ids, temperature, kept))
    assert _bits(again.logprobs_N) == _bits(whole.logprobs_N)
    for i in range(0, rows, 7):
        own = None
        if kept is not None:
            first, last = int(kept[1][i]), int(kept[1][i + 1])
            own = kept[0][first:last], torch.tensor([0, last - first])
        alone = Chosen(ids[i : i + 1], temperature, own)
        one = score(logits[i : i + 1], alone)
        assert _bits(one.logprobs_N) == _bits(whole.logprobs_N[i : i + 1])
        assert _bits(one.entropy_N) == _bits(whole.entropy_N[i : i + 1])
        again = slopes(logits[i : i + 1], alone, one.passed, grad[i : i + 1], torch.float32)
        assert torch.equal(again[0], slope[i])


params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.4, 1.0, 1.9]),
    top_k=st.sampled_from([0, 1, 7, 600]),
    top_p=st.sampled_from([1.0, 0.95, 0.4]),
    min_p=st.sampled_from([0.0, 0.02]),
)


@settings(max_examples=80, deadline=None)
@given(
    rows=st.lists(st.tuples(params, st.floats(0, 1, exclude_max=True)), min_size=1, max_size=9),
    vocabulary=st.sampled_from(SIZES),
    seed=st.integers(0, 99),
)
def test_who_draws_and_who_scores_agree_in_every_bit(rows, vocabulary: int, seed: int) -> None:
    logits = _logits(len(rows), vocabulary, seed)
    drawn = sample(logits, [p for p, _ in rows], [u for _, u in rows])
    for i, (p, _) in enumerate(rows):
        kept = drawn.supports[i]
        own = None if kept is None else (torch.from_numpy(kept), torch.tensor([0, len(kept)]))
        chosen = Chosen(torch.from_numpy(drawn.token_ids[i : i + 1]), p.temperature or 1.0, own)
        assert _bits(score(logits[i : i + 1], chosen).logprobs_N) == [int(drawn.logprobs[i].view(np.int32))]


@settings(max_examples=80, deadline=None)
@given(
    rows=st.lists(st.tuples(params, st.floats(0, 1, exclude_max=True)), min_size=1, max_size=9),
    vocabulary=st.sampled_from(SIZES),
    seed=st.integers(0, 99),
)
def test_both_kernels_draw_from_one_distribution(rows, vocabulary: int, seed: int) -> None:
    """The same supports and, but for a uniform on an edge, the same tokens."""
    logits = _logits(len(rows), vocabulary, seed)
    found = []
    for kernels in KERNELS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LOCKSTEP_KERNELS", kernels)
            found.append(sample(logits, [p for p, _ in rows], [u for _, u in rows]))
    ours, theirs = found
    for i, (p, u) in enumerate(rows):
        mine, other = ours.supports[i], theirs.supports[i]
        assert (mine is None) == (other is None)
        scaled = logits[i].double() / (p.temperature or 1.0)
        if mine is not None and other is not None and mine.tolist() != other.tolist():
            # only where the mass before a token is p up to rounding
            (differ,) = set(mine.tolist()) ^ set(other.tolist())
            inside = scaled[list(set(mine.tolist()) | set(other.tolist()))]
            before = inside[inside > scaled[differ]].exp().sum() / inside.exp().sum()
            assert abs(float(before) - p.top_p) < 1e-4
            continue
        if ours.token_ids[i] == theirs.token_ids[i]:
            assert ours.logprobs[i] == pytest.approx(theirs.logprobs[i], abs=1e-5)
            continue
        assert not p.greedy
        support = slice(None) if mine is None else torch.from_numpy(mine).long()
        edges = torch.zeros(vocabulary, dtype=torch.float64)
        edges[support] = scaled[support].softmax(0)
        assert (edges.cumsum(0) - u).abs().min() < 1e-6


def test_tokens_without_mass_are_never_drawn(kernels: str) -> None:
    """Whatever the uniform: the first token, the last, and blocks in which nothing is left."""
    logits = torch.full((1, 1600), -float("inf"))
    alive = [0, 700, 1599]
    logits[0, alive] = torch.tensor([0.0, 1.0, -1.0])
    ends = [0.0, 0.2, 0.5, 0.9, 1 - 2**-24]
    drawn = sample(logits.expand(5, -1), [SamplingParams()] * 5, ends)
    assert set(drawn.token_ids.tolist()) == set(alive)
    assert drawn.token_ids[0] == 0
    assert drawn.token_ids[-1] == 1599
    logits[0, 0] = -300.0
    assert sample(logits, [SamplingParams()], [0.0]).token_ids[0] == 700


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_not_lost(kernels: str, value: float) -> None:
    """Truncation must not filter it away: the reference once did, and gave the logprob 0.0."""
    for place in (0, 20, 1499):
        logits = _logits(1, 1500)
        logits[0, place] = value
        cuts = [{"top_p": 0.5}, {"top_k": 3}, {"min_p": 0.1}, {"top_k": 9, "top_p": 0.5, "min_p": 0.1}]
        kinds = [SamplingParams(), SamplingParams(temperature=0.0), *(SamplingParams(**cut) for cut in cuts)]
        drawn = sample(logits.expand(6, -1), kinds, [0.5] * 6)
        assert np.isnan(drawn.logprobs).all()
        assert ((drawn.token_ids >= 0) & (drawn.token_ids < 1500)).all()
        assert torch.isnan(score(logits, Chosen(torch.tensor([3]), 1.0)).logprobs_N).all()


def test_infinite_logits_give_no_number(kernels: str) -> None:
    logits = _logits(2, 40)
    logits[0] = -float("inf")
    logits[1, 3] = float("inf")
    assert torch.isnan(score(logits, Chosen(torch.tensor([3, 3]), 1.0)).logprobs_N).all()


def test_a_token_outside_the_support_has_no_mass(kernels: str) -> None:
    kept = torch.tensor([1, 5], dtype=torch.int32), torch.tensor([0, 2])
    found = score(_logits(1, 9), Chosen(torch.tensor([4]), 1.0, kept))
    assert found.logprobs_N.tolist() == [-float("inf")]


def test_ties_at_the_edge_of_top_k_stay_and_top_p_takes_the_lower_id(kernels: str) -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0]])
    (kept,) = sample(logits, [SamplingParams(top_k=2)], [0.0]).supports
    assert kept is not None
    assert kept.tolist() == [1, 2, 3, 4]
    (kept,) = sample(torch.zeros(1, 10), [SamplingParams(top_p=0.35)], [0.0]).supports
    assert kept is not None
    assert kept.tolist() == [0, 1, 2, 3]


def test_a_wide_nucleus_is_sorted_as_far_as_it_goes(kernels: str) -> None:
    """More kept tokens than any first guess of how many."""
    logits = _logits(1, 40_000, spread=0.3)
    (kept,) = sample(logits, [SamplingParams(top_p=0.9)], [0.0]).supports
    assert kept is not None
    probabilities, order = logits[0].double().softmax(0).sort(descending=True)
    count = int((probabilities.cumsum(0) - probabilities < 0.9).sum())
    assert abs(len(kept) - count) <= 3
    assert set(order[: count - 3].tolist()) <= set(kept.tolist()) <= set(order[: count + 3].tolist())


def test_supports_in_any_order_mean_the_same() -> None:
    logits, ids = _logits(1, 100), torch.tensor([7])
    tidy = torch.tensor([3, 7, 50, 99], dtype=torch.int32)
    loose = torch.tensor([99, 7, 3, 3, 50], dtype=torch.int32)
    both = [Chosen(ids, 0.8, (kept, torch.tensor([0, len(kept)]))) for kept in (tidy, loose)]
    one, other = (score(logits, chosen) for chosen in both)
    assert _bits(one.logprobs_N) == _bits(other.logprobs_N)
    grad = torch.ones(1)
    pairs = zip(both, (one, other), strict=True)
    assert torch.equal(*(slopes(logits, chosen, found.passed, grad, torch.float32) for chosen, found in pairs))


@pytest.mark.parametrize(
    ("ids", "kept", "words"),
    [
        ([9, 0], None, "ids: 9 is not below 9"),
        ([-1, 0], None, "ids: -1"),
        ([0, 0], ([9], [0, 1, 1]), "kept: 9"),
        ([0, 0], ([0], [0, 1, 2]), "beyond the ids"),
        ([0, 0], ([0, 1], [0, 2, 1]), "must not fall"),
    ],
)
def test_what_would_be_a_wild_read_is_an_error(ids: list[int], kept, words: str, monkeypatch) -> None:
    monkeypatch.setenv("LOCKSTEP_KERNELS", "native")
    pair = None if kept is None else (torch.tensor(kept[0], dtype=torch.int32), torch.tensor(kept[1]))
    with pytest.raises(IndexError, match=words):
        score(_logits(2, 9), Chosen(torch.tensor(ids), 1.0, pair))


def test_logits_are_fp32() -> None:
    with pytest.raises(AssertionError, match="logits are fp32"):
        distribution.operators_of(torch.zeros(1, 3, dtype=torch.bfloat16))
