"""Weights that change while requests are in flight: if it fails the old ones serve, if it succeeds tokens say so."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from lockstep.core import Request, SamplingParams, Span
from lockstep.engine import probe as probe_module
from lockstep.engine import weights as weights_module
from lockstep.errors import InputError, NumericsError
from lockstep.models.checkpoint import digest
from lockstep.weight_update import Probe, UpdatePolicy, WeightVersion

FREE = SamplingParams(max_tokens=12, ignore_eos=True)
REQUESTS = [Request(str(i), tuple(range(1, 20 + i)), replace(FREE, n=2)) for i in range(3)]


def moved(network, factor: float = 1.05):
    return {name: tensor * factor for name, tensor in network.params.items()}


def named(params, number: int) -> WeightVersion:
    return WeightVersion(number, digest(params))


def bits(rollouts):
    return {r.id: (r.token_ids.tobytes(), r.sampler_logprobs.values.tobytes()) for r in rollouts}


def run(engine, requests=REQUESTS, at: int = -1, then=lambda: None, events=None):
    """All rollouts of `requests`; `then` is called before step `at`, as are `events` before theirs."""
    events = {at: then, **(events or {})}
    for request in requests:
        engine.add(request)
    done, steps = [], 0
    while engine.has_work:
        events.get(steps, lambda: None)()
        done += engine.step()
        engine.check()
        steps += 1
    return sorted(done, key=lambda rollout: rollout.id)


@pytest.mark.parametrize("kv", ["keep", "salt", "recompute"])
@pytest.mark.parametrize("at", [0, 1, 4])
def test_an_identity_update_in_flight_moves_no_bit(llama, kv, at):
    expected = bits(run(llama.engine()))
    engine = llama.engine()
    policy = UpdatePolicy("keep", kv)
    got = run(engine, at=at, then=lambda: engine.update_weights(llama.params, named(llama.params, 1), policy))
    assert bits(got) == expected
    assert engine.version.number == 1


@pytest.mark.parametrize("kv", ["keep", "salt", "recompute"])
def test_tokens_say_which_weights_drew_them(llama, kv):
    engine, new = llama.engine(), moved(llama)
    before = run(llama.engine())
    got = run(engine, at=5, then=lambda: engine.update_weights(new, named(new, 1), UpdatePolicy("keep", kv)))
    for rollout, old in zip(got, before, strict=True):
        versions = rollout.provenance.weight_version
        assert versions.tolist() == sorted(versions.tolist())
        assert set(versions.tolist()) == {0, 1} == set(rollout.sampler_logprobs.contract.weight_versions)
        kept = int((versions == 0).sum())
        assert np.array_equal(rollout.token_ids[:kept], old.token_ids[:kept])
        last = rollout.provenance.spans[-1]
        assert (last.version, last.start == 0) == (1, kv == "recompute")


def test_wait_finishes_who_is_in_flight_with_the_old_weights(llama):
    expected, engine, new = run(llama.engine()), llama.engine(), moved(llama)
    policy = UpdatePolicy("wait")
    got = run(engine, at=2, then=lambda: engine.update_weights(new, named(new, 1), policy))
    assert bits(got) == bits(expected)
    assert all((r.provenance.weight_version == 0).all() for r in got)
    assert engine.version.number == 1


def test_abort_hands_out_what_there_is(llama):
    engine, new = llama.engine(), moved(llama)
    got = run(engine, at=3, then=lambda: engine.update_weights(new, named(new, 1), UpdatePolicy("abort")))
    assert [r.finish_reason for r in got] == ["abort"] * 6
    assert all(len(r.token_ids) == 3 for r in got)
    assert engine.memory().pages_used == 0


@pytest.mark.parametrize("pause", ["keep", "wait", "abort"])
def test_a_refused_update_touches_nobody_in_flight(llama, pause):
    expected, engine, new = bits(run(llama.engine())), llama.engine(), moved(llama)

    def refused():
        with pytest.raises(NumericsError):
            engine.update_weights(new, WeightVersion(1, "0" * 64), UpdatePolicy(pause))
        with pytest.raises(InputError):
            engine.update_weights({**new, "norm": new["norm"][:1]}, named(new, 1), UpdatePolicy(pause))

    assert bits(run(engine, at=3, then=refused)) == expected
    assert engine.version == llama.version


def test_there_and_back_returns_every_bit_even_through_the_prefix_cache(llama):
    engine, new = llama.engine(), moved(llama)

    def one_by_one():
        before = engine.counters().prefix_tokens
        found = bits([rollout for request in REQUESTS for rollout in engine.sample([request])])
        assert engine.counters().prefix_tokens == before + 32, "the first fills the cache for the two others, each time"
        return found

    before = one_by_one()
    engine.update_weights(new, named(new, 1))
    assert one_by_one() != before
    engine.update_weights(llama.params, named(llama.params, 2))
    assert one_by_one() == before


def test_tensors_may_come_one_by_one_and_only_one_update_is_open(llama):
    engine, new = llama.engine(), moved(llama)
    update = engine.begin_update(named(new, 1))
    for name, tensor in reversed(new.items()):
        update.stage(name, tensor)
    with pytest.raises(InputError, match="one update at a time"):
        engine.update_weights(new, named(new, 1))
    with pytest.raises(InputError, match="every parameter comes once"):
        update.stage("norm", new["norm"])
    new["norm"].zero_()  # what was staged is a copy
    engine.finish_update(update)
    assert engine.version.number == 1
    assert engine.weights.serving.params["norm"].any()


def test_an_update_may_be_prepared_in_another_thread_while_sequences_are_drawn(llama):
    engine, new = llama.engine(), moved(llama)
    version, probe = named(new, 1), probe_of(llama, new)
    plain = llama.engine()
    expected = bits(run(plain, at=6, then=lambda: plain.update_weights(new, version)))
    update = engine.begin_update(version)
    threads: list[threading.Thread] = []

    def start():
        def prepare():
            for name, tensor in new.items():
                update.stage(name, tensor)
            update.prepare(probe)

        threads.append(threading.Thread(target=prepare))
        threads[0].start()

    def install():
        threads[0].join()
        assert engine.version == llama.version, "nothing serves before it is finished"
        engine.finish_update(update)

    found = run(engine, events={3: start, 6: install})
    assert bits(found) == expected
    assert engine.version == version


def test_a_probe_that_comes_with_the_swap_is_asked_of_what_was_prepared(llama, monkeypatch):
    engine, new = llama.engine(), moved(llama)
    update = engine.begin_update(named(new, 1))
    for name, tensor in new.items():
        update.stage(name, tensor)
    update.prepare()
    monkeypatch.setattr(weights_module, "prepare", None)  # packing once more would fail
    with pytest.raises(NumericsError, match="must have the publisher's logprob"):
        engine.finish_update(update, probe=probe_of_others(llama))
    assert engine.version == llama.version


def probe_of_others(llama) -> Probe:
    ids = np.arange(3, 11, dtype=np.int32)
    return Probe(ids, np.zeros(len(ids) - 1, np.float32))


def test_what_is_staged_after_the_preparation_is_prepared_too(llama):
    engine, new = llama.engine(), moved(llama)
    update = engine.begin_update(named(new, 1))
    for name in list(new)[1:]:
        update.stage(name, new[name])
    with pytest.raises(InputError, match="every parameter must be there"):
        update.prepare()
    first = next(iter(new))
    update.stage(first, new[first])
    engine.finish_update(update)
    assert engine.version.number == 1


@pytest.mark.parametrize("finish", [True, False])
def test_an_update_that_was_not_whole_leaves_the_door_open_for_the_next(llama, finish):
    engine, new = llama.engine(), moved(llama)
    update = engine.begin_update(named(new, 1))
    update.stage("norm", new["norm"])
    if finish:
        with pytest.raises(InputError, match="every parameter must be there"):
            engine.finish_update(update)
    else:
        update.cancel()
    assert engine.version == llama.version
    engine.update_weights(new, named(new, 1))
    assert engine.version.number == 1


def test_shared_weights_are_not_copied(llama):
    engine, new = llama.engine(), moved(llama)
    engine.update_weights(new, named(new, 1), share=True)
    assert engine.weights.serving.params["norm"].data_ptr() == new["norm"].data_ptr()


def probe_of(llama, params) -> Probe:
    """What a publisher would send: here, what an engine of these weights says about a prompt."""
    ids = tuple(range(3, 11))
    engine = replace(llama, params=params).engine()
    (rollout,) = engine.sample([Request("p", ids, replace(FREE, max_tokens=1, prompt_logprobs=True))])
    assert rollout.prompt_logprobs is not None
    return Probe(rollout.prompt_ids, rollout.prompt_logprobs.values)


def test_a_probe_admits_weights_that_are_in_use(llama):
    engine, new = llama.engine(), moved(llama)
    engine.update_weights(new, named(new, 1), probe=probe_of(llama, new))
    assert engine.version.number == 1


def test_a_probe_catches_a_derived_copy_that_was_not_made_anew(llama, monkeypatch):
    """WGT04 and WGT10: every tensor is right, and what the forward reads is not."""
    engine, new = llama.engine(), moved(llama)
    real = probe_module.hidden_states
    monkeypatch.setattr(probe_module, "hidden_states", lambda _, *rest: real(llama.params, *rest))
    with pytest.raises(NumericsError, match="must have the publisher's logprob"):
        engine.update_weights(new, named(new, 1), probe=probe_of(llama, new))
    assert engine.version == llama.version


@pytest.mark.parametrize("part", ["qkv", "output", "gate_up", "down", "head"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_probe_catches_a_stale_packed_copy(network, family, part, monkeypatch):
    """WGT10: one weight of one layer, or the head, is multiplied as it was before the update."""
    net = network(family, "bfloat16")
    engine = net.engine()
    new = {name: tensor + 0.25 for name, tensor in net.params.items()}
    probe = probe_of(net, new)
    old, real = engine.weights.serving.prepared, weights_module.prepare

    def stale(*arguments):
        fresh = real(*arguments)
        if part == "head":
            return replace(fresh, head=old.head)
        name = f"layers.1.{part}"
        return replace(fresh, operands={**fresh.operands, name: old.operands[name]})

    monkeypatch.setattr(weights_module, "prepare", stale)
    with pytest.raises(NumericsError, match="must have the publisher's logprob"):
        engine.update_weights(new, named(new, 1), probe=probe)
    assert engine.version == net.version
    monkeypatch.undo()
    engine.update_weights(new, named(new, 1), probe=probe)


def test_one_flipped_bit_anywhere_is_caught(llama):
    """`lockstep prove flips` does it 10,000 times, on every family."""
    engine, generator = llama.engine(), torch.Generator().manual_seed(0)
    new = moved(llama)
    version, names = named(new, 1), sorted(new)
    for _ in range(50):
        name = names[int(torch.randint(len(names), (), generator=generator))]
        broken = {**new, name: new[name].clone()}
        flat = broken[name].view(torch.int32).view(-1)
        at = int(torch.randint(len(flat), (), generator=generator))
        flat[at] ^= 1 << int(torch.randint(31, (), generator=generator))
        with pytest.raises((NumericsError, InputError)):
            engine.update_weights(broken, version)
    assert engine.version == llama.version


def test_spans_of_a_request_that_began_before_the_update(llama):
    engine, new = llama.engine(), moved(llama)
    (first, *_) = run(engine, at=2, then=lambda: engine.update_weights(new, named(new, 1)))
    assert first.provenance.spans == (Span(0, 20, 0), Span(20, 30, 1))


@pytest.mark.parametrize("kv", ["keep", "recompute"])
def test_prompt_logprobs_say_which_weights_gave_them(llama, kv):
    """However the prompt is run again later."""
    engine, new = llama.engine(max_tokens_per_step=16), moved(llama)
    ask = [Request("p", tuple(range(1, 40)), replace(FREE, prompt_logprobs=True))]
    policy = UpdatePolicy("keep", kv)
    (late,) = run(engine, ask, at=5, then=lambda: engine.update_weights(new, named(new, 1), policy))
    assert late.prompt_logprobs.contract.weight_versions == (0,)
    engine = llama.engine(max_tokens_per_step=16)
    (early,) = run(engine, ask, at=1, then=lambda: engine.update_weights(new, named(new, 1), policy))
    assert early.prompt_logprobs.contract.weight_versions == ((0, 1) if kv == "keep" else (1,))
    assert len(early.prompt_logprobs) == 38


def test_keys_are_never_named_after_weights_of_long_ago(llama):
    """Steps that move no weight (lr = 0) publish the same content under new numbers; whoever replays a sequence holds
    the last versions only."""
    engine = llama.engine()
    before = engine.sample([REQUESTS[0]])
    for number in range(1, 4):
        engine.update_weights(llama.params, named(llama.params, number))
    after = engine.sample([replace(REQUESTS[0], id="again")])
    assert {span.version for rollout in after for span in rollout.provenance.spans} == {3}
    engine.update_weights(llama.params, named(llama.params, 3))  # a reload
    hits = engine.counters().prefix_tokens
    engine.sample([replace(REQUESTS[0], id="once more")])
    assert engine.counters().prefix_tokens == hits + 16, "a reload of the version that serves keeps its prefixes"
    assert bits(engine.sample([REQUESTS[0]])) == bits(before)
