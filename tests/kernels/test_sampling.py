"""Sampling: the right distribution, the right support, the promised logprob, and no dependence on the batch."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.core import SamplingParams
from lockstep.kernels.head import Targets, target_logprobs
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
    from lockstep.core import Support
    from lockstep.kernels.head import head_logits

    p = SamplingParams(temperature=0.7, top_p=0.8, top_k=11)
    got = sample(head_logits(hidden, weight), [p] * 30, np.linspace(0, 0.999, 30).tolist())
    kept = [s for s in got.supports if s is not None]
    support = Support(np.concatenate(kept), np.cumsum([0, *map(len, kept)]))
    ids = torch.from_numpy(got.token_ids)
    scored, _ = target_logprobs(hidden, weight, Targets(ids, 0.7, support))
    assert np.array_equal(scored.numpy().view(np.int32), got.logprobs.view(np.int32))
    raw, _ = target_logprobs(hidden, weight, Targets(ids, 1.0))
    assert not np.allclose(raw.numpy(), got.logprobs, atol=1e-3)
