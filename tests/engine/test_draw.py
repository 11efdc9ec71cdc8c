"""The engine against one plain packed forward of the finished sequences: same tokens, same bits.

This is the promise of the project seen from the engine's side. Schedules vary at random: chunks, pages, neighbours,
order of arrival, steps between arrivals. None of it may show.
"""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from lockstep import numerics
from lockstep.core import Path, Request, Rollout, SamplingParams
from lockstep.errors import NumericsError
from lockstep.kernels.attention import Packing, packed_attention
from lockstep.kernels.head import Targets, head_logits, target_logprobs
from lockstep.kernels.sampling import sample
from lockstep.models.decoder import attention_scale, hidden_states
from lockstep.models.prepared import head_weight

FAMILIES, DTYPES = ("llama", "qwen2", "qwen3"), ("float32", "bfloat16")
KINDS = (
    SamplingParams(),
    SamplingParams(temperature=0.7),
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.3, top_k=7, top_p=0.8, min_p=0.02),
    SamplingParams(top_p=0.5, seed=9),
)


def requests(count: int, seed: int = 0) -> list[Request]:
    rng = random.Random(seed)
    made = []
    for i in range(count):
        ids = tuple(rng.randrange(3, 61) for _ in range(rng.choice((1, 2, 5, 15, 16, 17, 32, 40, 70))))
        params = replace(
            KINDS[i % len(KINDS)], max_tokens=rng.randrange(1, 36), n=rng.choice((1, 1, 2, 4)), ignore_eos=i % 2 == 0
        )
        made.append(Request(f"request-{i}", ids, params))
    return made


def last_rows(net, rollouts: list[Rollout], head_dtype="float32"):
    """Hidden rows that decide each rollout's tokens, from one packed forward without a cache; and the head."""
    sequences = [np.concatenate((r.prompt_ids, r.token_ids)) for r in rollouts]
    packing = Packing.of([len(s) for s in sequences])
    arch = net.model.arch

    def attention(layer, q, k, v):
        return packed_attention(q, k, v, packing, attention_scale(arch))

    with torch.no_grad():
        ids = torch.from_numpy(np.concatenate(sequences)).long()
        positions = torch.cat([torch.arange(len(s)) for s in sequences])
        hidden = hidden_states(net.params, arch, ids, positions, attention)
    rows, first = [], 0
    for rollout, sequence in zip(rollouts, sequences, strict=True):
        rows.append(hidden[first + len(rollout.prompt_ids) - 1 : first + len(sequence) - 1])
        first += len(sequence)
    return rows, head_weight(net.params, arch, head_dtype)


def bits(rollout: Rollout):
    support = None if rollout.support is None else (rollout.support.ids.tolist(), rollout.support.offsets.tolist())
    return rollout.token_ids.tolist(), rollout.sampler_logprobs.values.view(np.int32).tolist(), support


def by_id(rollouts):
    return {rollout.id: rollout for rollout in rollouts}


def run_scattered(engine, batch, seed):
    """Add at random moments, in another order, stepping in between."""
    rng = random.Random(seed)
    queue, done = list(batch), []
    rng.shuffle(queue)
    while queue or engine.has_work:
        for _ in range(rng.choice((0, 1, 3))):
            if queue:
                engine.add(queue.pop())
        done += engine.step()
        engine.check()
    return by_id(done)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_forward_gives_the_same_bits(network, family, dtype, threads):
    """The forward on two threads, the engine on one: threads must not show either."""
    net = network(family, dtype)
    rollouts = net.engine(max_tokens_per_step=24, page_size=32).sample(requests(10))
    threads(2)
    rows, head = last_rows(net, rollouts)
    compared = 0
    for rollout, hidden in zip(rollouts, rows, strict=True):
        params = rollout.params
        targets = Targets(torch.from_numpy(rollout.token_ids).long(), params.temperature or 1.0, rollout.support)
        with torch.no_grad():
            expected, _ = target_logprobs(hidden, head, targets)
        got = rollout.sampler_logprobs.values
        assert np.array_equal(got.view(np.int32), expected.numpy().view(np.int32))
        compared += len(got)
    assert compared > 150


@pytest.mark.parametrize("family", FAMILIES)
def test_each_token_is_the_one_that_its_key_decides(network, family):
    """Token t of sample i of request r is drawn with uniform(key(seed, r, i), t), t counted from the prompt's start."""
    net = network(family, "float32")
    rollouts = net.engine(max_tokens_per_step=16).sample(requests(8, seed=1))
    rows, head = last_rows(net, rollouts)
    for rollout, hidden in zip(rollouts, rows, strict=True):
        request, index = rollout.id.split("/")
        key = numerics.request_key(rollout.params.seed, request, int(index))
        first = len(rollout.prompt_ids)
        uniforms = [numerics.uniform(key, first + t) for t in range(len(rollout.token_ids))]
        drawn = sample(head_logits(hidden, head), [rollout.params] * len(uniforms), uniforms)
        assert drawn.token_ids.tolist() == rollout.token_ids.tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_no_schedule_shows_in_the_result(network, family, dtype):
    net, batch = network(family, dtype), requests(9, seed=2)
    expected = {key: bits(r) for key, r in by_id(net.engine().sample(batch)).items()}
    schedules = [
        {"max_tokens_per_step": 8},
        {"max_tokens_per_step": 17, "page_size": 48, "max_sequences": 4},
        {"max_sequences": 5, "page_size": 64, "kv_cache_gb": 0.002},
    ]
    for seed, settings in enumerate(schedules):
        got = run_scattered(net.engine(**settings), batch, seed)
        assert {key: bits(r) for key, r in got.items()} == expected


def test_a_request_alone_is_a_request_in_company(llama):
    batch = requests(8, seed=3)
    together = by_id(llama.engine().sample(batch))
    for request in batch:
        for key, rollout in by_id(llama.engine().sample([request])).items():
            assert bits(rollout) == bits(together[key])


def test_fewer_samples_are_the_first_of_more(llama):
    request = Request("x", (5, 6, 7), SamplingParams(max_tokens=12, n=6))
    many = llama.engine().sample([request])
    assert len({tuple(r.token_ids.tolist()) for r in many}) > 1, "samples differ from each other"
    for n in (1, 3):
        few = llama.engine().sample([replace(request, params=replace(request.params, n=n))])
        assert [bits(r) for r in few] == [bits(r) for r in many[:n]]


def test_seed_and_id_are_part_of_the_key(llama):
    base = Request("x", (5, 6, 7), SamplingParams(max_tokens=20, ignore_eos=True))
    others = [base, replace(base, id="y"), replace(base, params=replace(base.params, seed=1))]
    runs = [tuple(llama.engine().sample([r])[0].token_ids.tolist()) for r in (*others, base)]
    assert len(set(runs)) == 3
    assert runs[0] == runs[3]


def test_greedy_takes_the_likeliest_token_whatever_the_seed(llama):
    runs = []
    for seed in (0, 1):
        params = SamplingParams(temperature=0.0, max_tokens=12, seed=seed, ignore_eos=True)
        (rollout,) = llama.engine().sample([Request(f"r{seed}", (4, 5), params)])
        (rows,), head = last_rows(llama, [rollout])
        assert head_logits(rows, head).argmax(-1).tolist() == rollout.token_ids.tolist()
        assert rollout.sampler_logprobs.contract.mode == "raw"
        runs.append(rollout.token_ids.tolist())
    assert runs[0] == runs[1]


def test_the_head_in_the_models_dtype_is_another_number_and_says_so(network):
    net = network("llama", "bfloat16")
    batch = requests(4, seed=4)
    (wide, narrow) = (net.engine(head_dtype=kind).sample(batch)[0] for kind in ("float32", "model"))
    contracts = [r.sampler_logprobs.contract.head_dtype for r in (wide, narrow)]
    assert contracts == ["float32", "model"]
    (rows,), head = last_rows(net, [narrow], "model")
    targets = Targets(torch.from_numpy(narrow.token_ids).long(), narrow.params.temperature)
    expected, _ = target_logprobs(rows, head, targets)
    assert np.array_equal(narrow.sampler_logprobs.values, expected.numpy())
    assert not np.array_equal(wide.sampler_logprobs.values[:1], narrow.sampler_logprobs.values[:1])


def test_provenance_says_which_way_a_token_came(llama):
    params = SamplingParams(max_tokens=3, n=2, ignore_eos=True)
    rollouts = llama.engine(max_tokens_per_step=10).sample(
        [Request("short", (5,), params), Request("whole", (5,) * 7, params), Request("long", (5,) * 25, params)]
    )
    paths = {r.id: [Path(p).name for p in r.provenance.path] for r in rollouts}
    for name, first in (("short", "PREFILL"), ("whole", "PREFILL"), ("long", "CHUNK")):
        assert paths[f"{name}/0"] == paths[f"{name}/1"] == [first, "DECODE", "DECODE"]
    assert all((r.provenance.weight_version == 0).all() and not r.provenance.cached.any() for r in rollouts)


def test_the_support_is_recorded_where_the_vocabulary_is_truncated(llama):
    truncated, full = llama.engine().sample(
        [
            Request("a", (5, 6), SamplingParams(top_k=3, max_tokens=8, ignore_eos=True)),
            Request("b", (5, 6), SamplingParams(max_tokens=8)),
        ]
    )
    assert full.support is None
    assert truncated.support is not None
    sizes = np.diff(truncated.support.offsets)
    assert len(sizes) == 8
    assert (sizes == 3).all()
    for t, token in enumerate(truncated.token_ids):
        kept = truncated.support.ids[truncated.support.offsets[t] : truncated.support.offsets[t + 1]]
        assert token in kept


def test_a_logprob_that_is_not_finite_is_an_error_and_nothing_is_appended(network):
    net = network("llama", "float32")
    engine = net.engine()
    engine.add(Request("bad", (5, 6), SamplingParams(max_tokens=4)))
    weight = engine.weights.serving.params["norm"]
    saved = weight.clone()
    weight.fill_(float("nan"))  # in place: the head and the embedding are untouched
    with pytest.raises(NumericsError, match=r"token 0 of \(bad/0\)"):
        engine.step()
    engine.check()
    weight.copy_(saved)
    done = []
    while engine.has_work:
        done += engine.step()
    assert bits(done[0]) == bits(net.engine().sample([Request("bad", (5, 6), SamplingParams(max_tokens=4))])[0])
