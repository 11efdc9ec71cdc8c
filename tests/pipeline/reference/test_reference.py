"""The reference as stated has the bits of engine and trainer; with other weights, those that the hypothesis names."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lockstep.errors import InputError
from lockstep.harness.networks import FAMILIES
from lockstep.parity.hypothesis import Hypothesis, Keys, Weights
from lockstep.parity.side import CannotAsk
from lockstep.pipeline.reference import NativeReference
from lockstep.train import SpanScorer

CLOSE = 3e-5
"""Nats between float32 kernels and float64 by the textbook."""

PLAIN = {"temperature": 1.0}
CUT = {"top_k": 12, "top_p": 0.9}
PENALISED = {"repetition_penalty": 1.2, "frequency_penalty": 0.4, "logit_bias": ((3, 1.5), (9, -2.0))}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("params", [PLAIN, CUT, PENALISED], ids=str)
def test_as_stated_it_has_the_bits_of_the_sampler_and_of_the_trainers_scorer(ran, family: str, params: dict) -> None:
    run = ran(family=family, params=params)
    scored = SpanScorer(run.lab.trainer.forward, run.lab.history, 512).score(run.rollouts)
    assert any(len({span.version for span in sample.spans}) == 2 for sample in run.samples)
    for sample, series, trainer in zip(run.samples, run.score(), scored, strict=True):
        assert series.dtype == np.float32
        assert series.tobytes() == sample.sampler.tobytes() == trainer.values.tobytes()


def test_bits_do_not_depend_on_company_or_on_the_size_of_a_forward(ran) -> None:
    run = ran()
    together = run.score()
    for max_tokens in (7, 64):
        alone = [run.reference(max_tokens=max_tokens).score([sample])[0] for sample in run.samples]
        assert [one.tobytes() for one in alone] == [one.tobytes() for one in together]


def test_bf16_pairs_have_the_same_bits_too(ran) -> None:
    run = ran(dtype="bfloat16")
    assert all(s.sampler.tobytes() == series.tobytes() for s, series in zip(run.samples, run.score(), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_as_stated_it_is_the_textbooks_number(ran, chosen, family: str) -> None:
    run = ran(family=family)
    for sample, series in zip(run.samples, run.score(), strict=True):
        assert np.allclose(series, chosen(run.logits(sample) / 0.7, sample), rtol=0, atol=CLOSE)


@pytest.mark.parametrize("version", [0, 1])
def test_one_version_runs_everything(ran, chosen, version: int) -> None:
    run = ran()
    stated = run.score()
    found = run.score(Hypothesis(weights=Weights(version=version)))
    for sample, series in zip(run.samples, found, strict=True):
        logits = run.logits(sample, lambda _: run.lab.history[version])
        assert np.allclose(series, chosen(logits / 0.7, sample), rtol=0, atol=CLOSE)
    assert max(np.abs(a - b).max() for a, b in zip(stated, found, strict=True)) > 100 * CLOSE


@pytest.mark.parametrize("stale", [{"layers.1.qkv"}, {"embedding"}, {"norm", "layers.0.down"}])
def test_some_tensors_are_of_an_older_version(ran, chosen, stale: set[str]) -> None:
    run = ran()
    mixed = {name: run.lab.history[0 if name in stale else 1][name] for name in run.lab.history[1]}
    found = run.score(Hypothesis(weights=Weights(version=1, stale=frozenset(stale), older=0)))
    for sample, series in zip(run.samples, found, strict=True):
        assert np.allclose(series, chosen(run.logits(sample, lambda _: mixed) / 0.7, sample), rtol=0, atol=CLOSE)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_stale_head_is_that_of_the_product_alone_tied_or_not(ran, chosen, family: str) -> None:
    run = ran(family=family)
    head = "embedding" if run.arch.tied else "head"
    assert run.arch.tied == (family == "llama")
    found = run.score(Hypothesis(weights=Weights(version=1, stale=frozenset({"head"}), older=0)))
    for sample, series in zip(run.samples, found, strict=True):
        hidden_by_new = run.hidden(sample, lambda _: run.lab.history[1])
        logits = hidden_by_new @ run.lab.history[0][head].double().T
        assert np.allclose(series, chosen(logits / 0.7, sample), rtol=0, atol=CLOSE)


def test_rows_of_a_torn_swap_run_with_the_mixture_and_the_others_as_stated(ran, chosen) -> None:
    run = ran()
    stale = frozenset(name for name in run.lab.history[0] if not name.startswith("layers.0."))
    mixed = {name: run.lab.history[0 if name in stale else 1][name] for name in run.lab.history[1]}
    changing = [s for s in run.samples if len({span.version for span in s.spans}) == 2]
    rows = {s.id: (s.spans[0].end, s.spans[0].end + 1) for s in changing}
    weights = Weights(version=1, stale=stale, older=0, rows=rows)
    for sample, series in zip(changing, run.score(Hypothesis(weights=weights), changing), strict=True):
        stated, torn = run.weights_of(sample), rows[sample.id][0]

        def at(position: int, stated=stated, torn=torn):
            return mixed if position == torn else stated(position)

        assert np.allclose(series, chosen(run.logits(sample, at) / 0.7, sample), rtol=0, atol=CLOSE)


def test_weights_under_a_name_run_everything(ran, chosen) -> None:
    run = ran(dtype="bfloat16", in_flight=False)
    masters = {name: tensor.detach() for name, tensor in run.lab.trainer.optimizer.masters.items()}
    reference = run.reference(named={"masters": masters})
    assert reference.names == ("masters",)
    found = reference.score(run.samples, Hypothesis(weights=Weights(name="masters")))
    for sample, series in zip(run.samples, found, strict=True):
        assert np.allclose(series, chosen(run.logits(sample, lambda _: masters) / 0.7, sample), rtol=0, atol=CLOSE)


def test_another_prompt_is_read_instead(ran, chosen) -> None:
    run = ran()
    prompts = {sample.id: (5, *sample.prompt_ids.tolist()[:-1]) for sample in run.samples[:3]}
    found = run.score(Hypothesis(prompts=prompts))
    for sample, series, stated in zip(run.samples, found, run.score(), strict=True):
        if sample.id not in prompts:
            assert series.tobytes() == stated.tobytes()
            continue
        other = replace(sample, prompt_ids=np.array(prompts[sample.id], np.int32), spans=())
        assert series.tobytes() == run.score(samples=[other])[0].tobytes() != stated.tobytes()
        if len(set(sample.versions.tolist())) == 1:
            assert np.allclose(series, chosen(run.logits(other) / 0.7, other), rtol=0, atol=CLOSE)


@pytest.mark.parametrize(
    "hypothesis",
    [
        Hypothesis(weights=Weights(version=7)),
        Hypothesis(weights=Weights(stale=frozenset({"norm"}), older=7)),
        Hypothesis(weights=Weights(name="masters")),
        Hypothesis(keys=Keys(older=1, until={"s2p0/0": 4})),
    ],
    ids=["version", "older", "name", "keys"],
)
def test_what_is_not_held_cannot_be_asked(ran, hypothesis: Hypothesis) -> None:
    run = ran(in_flight=False)
    with pytest.raises(CannotAsk):
        run.score(hypothesis)


def test_tokens_that_the_model_does_not_have_are_refused(ran) -> None:
    run = ran()
    beyond = replace(run.samples[0], token_ids=run.samples[0].token_ids + 61)
    with pytest.raises(InputError):
        run.score(samples=[beyond])


def test_no_samples_are_no_series_whatever_is_held(ran) -> None:
    assert NativeReference(ran().arch, {}).score([]) == []


def test_weights_that_come_later_are_held_too(ran) -> None:
    run = ran()
    held = {0: run.lab.history[0]}
    reference = NativeReference(run.arch, held, dtype="float32")
    bare = [replace(sample, versions=None, spans=()) for sample in run.samples]
    old = reference.score(bare)
    held[1] = run.lab.history[1]
    assert reference.versions == (0, 1)
    new = run.score(Hypothesis(weights=Weights(version=1)))
    for before, after, expected in zip(old, reference.score(bare), new, strict=True):
        assert after.tobytes() == expected.tobytes() != before.tobytes()


def test_weights_under_a_name_may_change_between_two_calls(ran) -> None:
    run = ran()
    named = {name: tensor.clone() for name, tensor in run.lab.history[0].items()}
    reference = NativeReference(run.arch, {}, {"masters": named}, "float32")
    masters = Hypothesis(weights=Weights(name="masters"))
    old = reference.score(run.samples, masters)
    named["norm"].mul_(1.5)
    pairs = zip(old, reference.score(run.samples, masters), strict=True)
    assert all(before.tobytes() != after.tobytes() for before, after in pairs)


def test_parameters_are_named_in_the_order_of_the_network_and_the_head_is_last(ran) -> None:
    for family in ("llama", "qwen2"):
        names = ran(family=family).reference().parameters
        assert names[0] == "embedding" and names[-1] == "head" and names.count("head") == 1
        assert set(ran(family=family).lab.history[0]) | {"head"} == set(names)


def test_calibration_is_the_distance_between_the_dtypes(ran) -> None:
    run = ran(dtype="bfloat16")
    wide = {number: {n: p.float() for n, p in params.items()} for number, params in run.lab.history.items()}
    exact = NativeReference(run.arch, wide, dtype="float32").score(run.samples)
    pairs = zip(run.reference().calibration(run.samples), run.score(), exact, strict=True)
    for found, narrow, other in pairs:
        assert np.array_equal(found, narrow.astype(np.float64) - other)
        assert 0 < np.abs(found).max() < 0.2
