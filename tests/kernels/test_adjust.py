"""Adjusted logits against plain Python, row by row; and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.core import SamplingParams
from lockstep.errors import InputError, NumericsError
from lockstep.kernels.adjust import Adjustment, History, adjusted, require_vocabulary

V = 12
F = np.float32

ids = st.integers(0, V - 1)
tokens = st.lists(ids, max_size=9).map(lambda found: np.array(found, np.int32))
params = st.builds(
    SamplingParams,
    presence_penalty=st.sampled_from([0.0, 0.0, 0.7, -2.0]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.3, -0.1]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.1, 0.6, 2.0]),
    logit_bias=st.dictionaries(ids, st.floats(-100, 100), max_size=4).map(lambda found: tuple(sorted(found.items()))),
    bad_words=st.lists(st.lists(ids, min_size=1, max_size=4).map(tuple), max_size=V - 1).map(tuple),
)
histories = st.none() | st.builds(History, params, tokens, tokens)


def oracle(logits: np.ndarray, history: History | None) -> np.ndarray:
    """The same, one token at a time, each step rounded to fp32."""
    if history is None:
        return logits
    out, p = logits.copy(), history.params
    prompt, completion = history.prompt.tolist(), history.completion.tolist()
    for token in range(V):
        if token in prompt or token in completion:
            penalty = F(p.repetition_penalty)
            out[token] = out[token] / penalty if out[token] > 0 else out[token] * penalty
        if token in completion:
            out[token] -= F(p.frequency_penalty) * F(completion.count(token)) + F(p.presence_penalty)
    for token, bias in p.logit_bias:
        out[token] += F(bias)
    for word in p.bad_words:
        start = len(prompt) + len(completion) - (len(word) - 1)
        if start >= 0 and (prompt + completion)[start:] == list(word[:-1]):
            out[word[-1]] = -np.inf
    return out


def logits_of(rows: int, seed: int) -> torch.Tensor:
    values = torch.randn(rows, V, generator=torch.Generator().manual_seed(seed)) * 4
    values[:, ::5] = 0.0  # neither positive nor negative
    return values


def bits(values: torch.Tensor | np.ndarray) -> np.ndarray:
    return np.asarray(values).view(np.int32)


@settings(max_examples=300, deadline=None)
@given(st.lists(histories, min_size=1, max_size=6), st.integers(0, 30))
def test_it_is_the_definition_to_the_bit(rows: list[History | None], seed: int) -> None:
    logits = logits_of(len(rows), seed)
    before = logits.clone()
    got = adjusted(logits, rows)
    assert torch.equal(logits, before), "the logits of the caller stay"
    for i, history in enumerate(rows):
        assert np.array_equal(got[i].numpy(), oracle(logits[i].numpy(), history)), history
        if history is None or not history.params.adjusts:
            assert np.array_equal(bits(got[i]), bits(logits[i]))


@settings(max_examples=100, deadline=None)
@given(st.lists(histories, min_size=2, max_size=6), st.integers(0, 30))
def test_a_row_is_adjusted_alone_as_in_company(rows: list[History | None], seed: int) -> None:
    logits = logits_of(len(rows), seed)
    together = adjusted(logits, rows)
    for i, history in enumerate(rows):
        assert np.array_equal(bits(adjusted(logits[i : i + 1], [history])[0]), bits(together[i]))


@settings(max_examples=100, deadline=None)
@given(st.lists(histories, min_size=1, max_size=5), st.integers(0, 30))
def test_the_way_back_is_the_derivative(rows: list[History | None], seed: int) -> None:
    """Against differences in float64: every adjustment is linear away from zero."""
    logits = logits_of(len(rows), seed)
    adjustment = Adjustment.of(rows, V)
    if adjustment is None:
        return
    got, slopes = adjustment.apply(logits)
    upstream = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed + 1))
    pulled = upstream.clone()
    slopes.pull_back(pulled)
    for i, history in enumerate(rows):
        p = history.params if history is not None else SamplingParams()
        known = set() if history is None else {*history.prompt.tolist(), *history.completion.tolist()}
        for token in range(V):
            factor = 1.0
            if token in known:
                factor = 1 / p.repetition_penalty if logits[i, token] > 0 else p.repetition_penalty
            if torch.isinf(got[i, token]):
                factor = 0.0
            assert float(pulled[i, token]) == pytest.approx(float(upstream[i, token]) * factor, rel=1e-6)


def test_nothing_to_adjust_is_the_same_tensor() -> None:
    logits = logits_of(3, 0)
    plain = History(SamplingParams(temperature=0.5, top_k=3), np.arange(3), np.arange(3))
    assert adjusted(logits, [None, plain, None]) is logits
    assert Adjustment.of([None, plain], V) is None
    assert Adjustment.of([], V) is None


def test_a_row_without_a_history_to_its_logits_is_a_mistake_of_ours() -> None:
    with pytest.raises(AssertionError, match="3 rows, 2 histories"):
        adjusted(logits_of(3, 0), [None, None])


def test_a_bad_word_may_begin_in_the_prompt() -> None:
    words = SamplingParams(bad_words=((3, 4, 5), (9,)))
    row = adjusted(logits_of(1, 0), [History(words, np.array([1, 3]), np.array([4]))])[0]
    assert row.isinf().nonzero()[:, 0].tolist() == [5, 9]
    row = adjusted(logits_of(1, 0), [History(words, np.array([1]), np.array([4]))])[0]
    assert row.isinf().nonzero()[:, 0].tolist() == [9]


def test_penalties_count_the_completion_and_repetition_the_prompt_too() -> None:
    logits = torch.ones(1, V)
    counted = SamplingParams(frequency_penalty=0.5, presence_penalty=0.25)
    row = adjusted(logits, [History(counted, np.array([1, 1]), np.array([2, 3, 3]))])[0]
    assert row[:4].tolist() == [1.0, 1.0, 0.25, -0.25]
    repeated = SamplingParams(repetition_penalty=2.0)
    row = adjusted(-logits, [History(repeated, np.array([1, 1]), np.array([2, 3, 3]))])[0]
    assert row[:5].tolist() == [-1.0, -2.0, -2.0, -2.0, -1.0]


def test_a_row_without_a_token_is_an_error_and_never_nan() -> None:
    every = SamplingParams(bad_words=tuple((i,) for i in range(V)))
    with pytest.raises(NumericsError, match="token 2 after a prompt of 1: bad_words must leave a token"):
        adjusted(logits_of(2, 0), [None, History(every, np.array([1]), np.array([2, 3]))])
    one_left = replace(every, bad_words=every.bad_words[1:])
    row = adjusted(logits_of(1, 0), [History(one_left, np.array([1]), np.array([2, 3]))])
    assert row.log_softmax(-1)[0, 0] == 0.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"logit_bias": ((3, 1.0), (V, 1.0))}, ["ids in logit_bias", f"got {V}", f"0 to {V - 1}"]),
        ({"bad_words": ((V + 3, 1),)}, ["ids in bad_words", f"got {V + 3}"]),
        ({"bad_words": tuple((i,) for i in range(V))}, ["leave a token", f"{V} last tokens"]),
        ({"bad_words": tuple((i, i) for i in range(V))}, ["leave a token", f"{V} last tokens"]),
    ],
)
def test_what_does_not_fit_the_vocabulary_is_refused(changes: dict[str, tuple[object, ...]], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        require_vocabulary("request (q7)", SamplingParams(**changes), V)  # type: ignore[arg-type]
    text = str(caught.value)
    assert text.startswith("request (q7): ")
    assert [word for word in words if word not in text] == []


@given(params)
def test_what_is_accepted_never_runs_out_of_tokens(p: SamplingParams) -> None:
    require_vocabulary("request (q7)", p, V)
    for history in ([], [1], [3, 1], [0, 0, 0, 0]):
        row = adjusted(logits_of(1, 0), [History(p, np.array([5]), np.array(history, np.int32))])
        assert torch.isfinite(row).any()
