"""From hidden rows to logprobs: every way of reading against log softmax over full logits, written out by token."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lockstep.core import SamplingParams, Support
from lockstep.kernels.head import CHUNK
from lockstep.kernels.linear import Packed, pack
from lockstep.parity.hypothesis import Reading
from lockstep.parity.observation import Sample
from lockstep.pipeline.reference.reading import read

E, V, P = 8, 17, 5


class Case:
    """Random rows, a head and a sample; `logits` float64 [T][V]."""

    def __init__(self, seed: int, params: SamplingParams | None, count: int = 6) -> None:
        draw = np.random.default_rng(seed)
        self.rows = torch.from_numpy(draw.standard_normal((count, E), np.float32))
        self.weight = torch.from_numpy(draw.standard_normal((V, E), np.float32))
        self.sample = Sample(
            "s", draw.integers(V, size=P).astype(np.int32), draw.integers(V, size=count).astype(np.int32), params=params
        )
        self.logits = (self.rows.double() @ self.weight.double().T).tolist()

    @property
    def head(self) -> Packed:
        return pack(self.weight, wide=True)

    def read(self, reading: Reading, tokens: range | None = None) -> np.ndarray:
        tokens = tokens or range(len(self.sample.token_ids))
        return read(self.rows[tokens.start : tokens.stop], self.head, self.sample, tokens, reading)

    def expected(self, params: SamplingParams, *, scale: float = 1.0, late: int = 0) -> list[float]:
        """The processed logprob of every token."""
        out = []
        for t, token in enumerate(self.sample.token_ids.tolist()):
            history = self.sample.token_ids[: max(t - late, 0)].tolist()
            row = adjusted(self.logits[t], params, self.sample.prompt_ids.tolist(), history)
            row = [x * scale / (params.temperature or 1.0) for x in row]
            kept = support(row, params)
            total = math.log(sum(math.exp(row[i]) for i in kept))
            out.append(row[token] - total if token in kept else -math.inf)
        return out


def adjusted(row: list[float], params: SamplingParams, prompt: list[int], drawn: list[int]) -> list[float]:
    """Penalties, bias and bad words, one token after the other."""
    counts, out = Counter(drawn), list(row)
    for i in range(V):
        if i in counts or i in prompt:
            out[i] = out[i] / params.repetition_penalty if out[i] > 0 else out[i] * params.repetition_penalty
        if counts[i]:
            out[i] -= params.frequency_penalty * counts[i] + params.presence_penalty
        out[i] += dict(params.logit_bias).get(i, 0.0)
    text = prompt + drawn
    for word in params.bad_words:
        if len(word) == 1 or tuple(text[-len(word) + 1 :]) == word[:-1]:
            out[word[-1]] = -math.inf
    return out


def support(row: list[float], params: SamplingParams) -> set[int]:
    """min-p, then top-k, then top-p over what is left."""
    kept = sorted((i for i in range(V) if row[i] > -math.inf), key=lambda i: -row[i])
    kept = [i for i in kept if math.exp(row[i] - row[kept[0]]) >= params.min_p]
    kept = kept[: params.top_k or V]
    total, before, out = sum(math.exp(row[i]) for i in kept), 0.0, set()
    for i in kept:
        if before < params.top_p or params.top_p == 1.0:
            out.add(i)
        before += math.exp(row[i]) / total
    return out


def close(found: np.ndarray, expected: list[float]) -> bool:
    assert found.dtype == np.float32
    return bool(np.allclose(found, expected, rtol=1e-5, atol=2e-5))


seeds = st.integers(0, 10**6)
temperatures = st.sampled_from([0.3, 0.7, 1.0, 1.6])
penalised = st.builds(
    SamplingParams,
    temperature=temperatures,
    repetition_penalty=st.sampled_from([1.0, 0.8, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.5, -0.4]),
    presence_penalty=st.sampled_from([0.0, 0.3]),
    logit_bias=st.sampled_from([(), ((2, 1.5), (7, -3.0))]),
    bad_words=st.sampled_from([(), ((4,),), ((1, 2), (3, 5, 6))]),
)
truncating = st.builds(
    SamplingParams,
    temperature=temperatures,
    top_k=st.sampled_from([0, 1, 4, 30]),
    top_p=st.sampled_from([1.0, 0.6, 0.93]),
    min_p=st.sampled_from([0.0, 0.05, 0.3]),
)


@given(seeds, penalised | truncating)
def test_processed_is_as_the_sample_was_asked_for(seed: int, params: SamplingParams) -> None:
    case = Case(seed, params)
    assert close(case.read(Reading()), case.expected(params))


@given(seeds, penalised | truncating)
def test_raw_is_log_softmax_of_the_plain_logits_whatever_was_asked_for(seed: int, params: SamplingParams) -> None:
    case = Case(seed, params)
    ids = torch.from_numpy(case.sample.token_ids.astype(np.int64))
    plain = torch.log_softmax(torch.tensor(case.logits), -1)[torch.arange(len(ids)), ids]
    assert close(case.read(Reading("raw")), plain.tolist())


@given(seeds, penalised | truncating)
def test_divided_is_the_raw_logprob_over_the_temperature(seed: int, params: SamplingParams) -> None:
    case = Case(seed, params)
    raw = case.expected(SamplingParams())
    assert close(case.read(Reading("divided")), [one / params.temperature for one in raw])


@given(seeds, penalised)
def test_masked_keeps_bias_and_bad_words_and_nothing_else(seed: int, params: SamplingParams) -> None:
    case = Case(seed, params)
    kept = SamplingParams(logit_bias=params.logit_bias, bad_words=params.bad_words)
    assert close(case.read(Reading("masked")), case.expected(kept))


@given(seeds, temperatures, st.sampled_from([0.5, 1.4]), st.sampled_from(["processed", "raw"]))
def test_a_scale_multiplies_the_logits_before_the_temperature(seed, temperature, scale, mode) -> None:
    params = SamplingParams(temperature=temperature)
    case, acting = Case(seed, params), params if mode == "processed" else SamplingParams()
    assert close(case.read(Reading(mode, scale=scale)), case.expected(acting, scale=scale))


@given(seeds, truncating.filter(lambda params: params.truncates), st.sampled_from([0.5, 1.4]))
def test_a_support_is_computed_again_from_scaled_logits(seed: int, params: SamplingParams, scale: float) -> None:
    case = Case(seed, params)
    assert close(case.read(Reading(scale=scale)), case.expected(params, scale=scale))


@given(seeds, penalised, st.integers(0, 8))
def test_late_penalties_see_fewer_tokens(seed: int, params: SamplingParams, late: int) -> None:
    case = Case(seed, params)
    assert close(case.read(Reading(late=late)), case.expected(params, late=late))


@given(seeds, penalised, temperatures, st.sampled_from([1.0, 1.2]))
def test_fields_replace_those_of_the_sample_and_leave_the_others(seed, params, temperature, penalty) -> None:
    case = Case(seed, params)
    fields = {"temperature": temperature, "repetition_penalty": penalty}
    assert close(case.read(Reading(fields=fields)), case.expected(replace(params, **fields)))


def test_a_sample_that_does_not_say_was_asked_for_plainly() -> None:
    case = Case(1, None)
    assert close(case.read(Reading()), case.expected(SamplingParams()))
    assert close(case.read(Reading(fields={"temperature": 0.5})), case.expected(SamplingParams(temperature=0.5)))


@pytest.mark.parametrize("fields", [{}, {"repetition_penalty": 1.3}])
def test_greedy_tokens_are_read_at_temperature_one_over_everything(fields: dict) -> None:
    case = Case(2, SamplingParams(temperature=0.0, top_k=3, top_p=0.5, **fields))
    assert close(case.read(Reading()), case.expected(SamplingParams(**fields)))


# -- supports


def recorded(case: Case, kept: list[list[int]]) -> Case:
    offsets = np.cumsum([0, *map(len, kept)])
    case.sample = replace(case.sample, support=Support(np.concatenate(kept).astype(np.int32), offsets))
    return case


def some_support(case: Case) -> list[list[int]]:
    """Token t was drawn from itself and two neighbours, whatever the logits say."""
    return [sorted({t, (t + 1) % V, (t + 5) % V}) for t in case.sample.token_ids.tolist()]


def over(case: Case, t: int, ids: list[int], temperature: float = 1.0) -> float:
    row = case.logits[t]
    return row[case.sample.token_ids[t]] / temperature - math.log(sum(math.exp(row[i] / temperature) for i in ids))


def test_a_recorded_support_is_a_fact() -> None:
    case = Case(3, SamplingParams(temperature=0.7, top_k=3))
    kept = some_support(case)
    assert close(recorded(case, kept).read(Reading()), [over(case, t, ids, 0.7) for t, ids in enumerate(kept)])


@pytest.mark.parametrize("fields", [{"temperature": 0.9}, {"top_k": 3}])
def test_it_stays_one_if_no_filter_is_another(fields: dict) -> None:
    case = Case(3, SamplingParams(temperature=0.7, top_k=3))
    kept, temperature = some_support(case), fields.get("temperature", 0.7)
    found = recorded(case, kept).read(Reading(fields=fields))
    assert close(found, [over(case, t, ids, temperature) for t, ids in enumerate(kept)])


@pytest.mark.parametrize("fields", [{"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}, {"top_k": 0}])
def test_another_filter_makes_another_support(fields: dict) -> None:
    params = SamplingParams(temperature=0.7, top_k=3)
    case = Case(3, params)
    found = recorded(case, some_support(case)).read(Reading(fields=fields))
    assert close(found, case.expected(replace(params, **fields)))


def test_a_token_outside_its_support_is_impossible() -> None:
    case = Case(4, SamplingParams(top_k=2))
    kept = some_support(case)
    kept[2] = [i for i in range(V) if i != case.sample.token_ids[2]]
    found = recorded(case, kept).read(Reading())
    assert found[2] == -np.inf
    assert np.isfinite(np.delete(found, 2)).all()
    computed = Case(4, SamplingParams(top_k=1)).read(Reading())
    best = np.array(case.logits).argmax(1) == case.sample.token_ids
    assert np.array_equal(np.isfinite(computed), best)


# -- parts


@given(seeds, penalised | truncating, st.integers(1, 5), st.integers(0, 3))
def test_parts_have_the_bits_of_the_whole(seed: int, params: SamplingParams, cut: int, late: int) -> None:
    case, reading = Case(seed, params), Reading(late=late)
    parts = [case.read(reading, range(cut)), case.read(reading, range(cut, 6))]
    assert np.concatenate(parts).tobytes() == case.read(reading).tobytes()


def test_more_rows_than_a_chunk_are_filtered_as_each_alone() -> None:
    params = SamplingParams(temperature=0.7, top_k=4, frequency_penalty=0.2)
    case = Case(5, params, CHUNK + 3)
    assert close(case.read(Reading()), case.expected(params))
