"""The engine from outside: what a user calls, what they get, what they are told."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import lockstep
from lockstep.core import Path, Request, Sampler, SamplingParams
from lockstep.engine import engine as module
from lockstep.errors import ConfigError, InputError, ModelError, NumericsError
from lockstep.models.checkpoint import digest
from lockstep.weight_update import WeightVersion

FREE = SamplingParams(max_tokens=24, ignore_eos=True)


def same(left, right) -> bool:
    return len(left) == len(right) and all(
        (a.id, a.text, a.finish_reason) == (b.id, b.text, b.finish_reason)
        and np.array_equal(a.token_ids, b.token_ids)
        and np.array_equal(a.sampler_logprobs.values, b.sampler_logprobs.values)
        for a, b in zip(left, right, strict=True)
    )


@pytest.fixture
def engine(llama):
    built = llama.engine()
    yield built
    built.check()
    assert not built.has_work
    memory = built.memory()
    assert (memory.pages_used, memory.pages_free + memory.pages_cached) == (0, memory.kv_bytes // memory.page_bytes)


def test_load_and_generate_by_directory(llama):
    built = lockstep.Engine.load(str(llama.model.path), dtype="float32", kv_cache_gb=0.004)
    assert built.version == llama.version
    out = built.generate("abc", SamplingParams(max_tokens=8))
    assert same(out, llama.engine().generate("abc", SamplingParams(max_tokens=8)))
    assert isinstance(built, Sampler)


def test_load_names_a_wrong_setting_and_an_unknown_model(llama):
    with pytest.raises(ConfigError, match=r"engine.kv_cash_gb.*kv_cache_gb"):
        lockstep.Engine.load(str(llama.model.path), kv_cash_gb=1)
    with pytest.raises(ModelError):
        lockstep.Engine.load("no-such-model-at-all")


def test_generate_takes_one_prompt_or_many(engine):
    one = engine.generate("abc", FREE)
    many = engine.generate(["abc", [{"role": "user", "content": "abc"}], "xyz"], replace(FREE, n=2))
    assert [r.id for r in many] == ["0/0", "0/1", "1/0", "1/1", "2/0", "2/1"]
    assert many[0].text == one[0].text
    assert many[0].prompt_ids.tolist() == many[2].prompt_ids.tolist()
    assert len(one[0].token_ids) == 24
    raw = engine.generate("abc", FREE, chat=False)
    assert raw[0].prompt_ids.tolist() == one[0].prompt_ids[:-1].tolist()


def test_the_same_call_gives_the_same_and_another_seed_another(engine):
    assert same(engine.generate("abc", FREE), engine.generate("abc", FREE))
    assert engine.generate("abc", FREE)[0].text != engine.generate("abc", replace(FREE, seed=1))[0].text


def test_text_is_the_tokens_without_the_stop_token(engine):
    rollouts = engine.generate(["abc"] * 30, SamplingParams(max_tokens=30))
    stopped = [r for r in rollouts if r.finish_reason == "stop"]
    cut = [r for r in rollouts if r.finish_reason == "length"]
    assert stopped
    assert cut
    tokenizer = engine.model.tokenizer
    for rollout in stopped:
        assert rollout.token_ids[-1] in tokenizer.eos_ids
        assert not set(rollout.token_ids[:-1].tolist()) & set(tokenizer.eos_ids)
        assert rollout.text == tokenizer.decode(rollout.token_ids[:-1].tolist())
        assert len(rollout.sampler_logprobs) == len(rollout.provenance) == len(rollout.token_ids)
    for rollout in cut:
        assert len(rollout.token_ids) == 30
        assert rollout.text == tokenizer.decode(rollout.token_ids.tolist())


def test_ignore_eos_goes_on_and_other_stop_tokens_still_count(engine):
    free = engine.generate("abc", replace(FREE, max_tokens=60))[0].token_ids.tolist()
    marker = next(token for token in free[5:] if engine.model.tokenizer.decode([token]))
    (rollout,) = engine.generate("abc", replace(FREE, max_tokens=60, stop_token_ids=(marker,)))
    assert rollout.finish_reason == "stop"
    assert rollout.token_ids.tolist() == free[: free.index(marker) + 1]
    assert rollout.text == engine.model.tokenizer.decode(free[: free.index(marker)]), "a stop token is not text"
    last = free.index(marker) + 1
    assert engine.generate("abc", replace(FREE, max_tokens=last, stop_token_ids=(marker,)))[0].finish_reason == "stop"


def test_a_stop_string_cuts_the_text_and_keeps_the_token_that_completed_it(engine):
    (free,) = engine.generate("abc", FREE)
    tokenizer = engine.model.tokenizer
    stop = free.text[6:9]
    (rollout,) = engine.generate("abc", replace(FREE, stop=("nothing like it", stop)))
    at = free.text.index(stop)
    assert (rollout.finish_reason, rollout.text) == ("stop", free.text[:at])
    kept = rollout.token_ids.tolist()
    assert kept == free.token_ids[: len(kept)].tolist()
    assert stop in tokenizer.decode(kept)
    assert stop not in tokenizer.decode(kept[:-1])
    assert len(rollout.sampler_logprobs) == len(kept)


def test_a_stop_string_that_never_comes_changes_nothing(engine):
    free = engine.generate("abc", FREE)
    assert same(engine.generate("abc", replace(FREE, stop=("no such text",))), free)


def test_stream_gives_the_text_of_generate_piece_by_piece(engine):
    for params in (FREE, SamplingParams(max_tokens=40, seed=3), replace(FREE, stop=("4", "a"))):
        pieces = list(engine.stream("abc", params))
        assert "".join(pieces) == engine.generate("abc", params)[0].text
        assert "" not in pieces
    assert len(list(engine.stream("abc", FREE))) > 10


def test_a_stream_that_is_left_early_gives_its_pages_back(engine):
    stream = engine.stream("abc", FREE)
    next(stream)
    assert engine.memory().pages_used > 0
    stream.close()
    assert engine.memory().pages_used == 0


def test_calls_may_be_interleaved(engine):
    alone = "".join(engine.stream("abc", FREE)), engine.generate("xyz", FREE)
    engine.add(Request("mine", (5, 6), SamplingParams(max_tokens=3, ignore_eos=True)))
    stream = engine.stream("abc", FREE)
    text = next(stream)
    assert same(engine.generate("xyz", FREE), alone[1])
    text += "".join(stream)
    assert text == alone[0]
    assert engine.has_work, "the finished request waits to be handed out"
    (mine,) = engine.step()
    assert mine.id == "mine/0"


@pytest.mark.parametrize(("prompts", "n"), [(["ab", "cd"], 1), ("ab", 2), ([], 1)])
def test_stream_refuses_all_but_one_completion_before_it_begins(engine, prompts, n):
    with pytest.raises(InputError):
        engine.stream(prompts, SamplingParams(n=n))


def test_step_hands_each_completion_out_once(engine):
    engine.add(Request("a", (5, 6), SamplingParams(max_tokens=2, n=2, ignore_eos=True), task_id="sum"))
    engine.add(Request("b", (5, 6), SamplingParams(max_tokens=5, ignore_eos=True)))
    seen = []
    while engine.has_work:
        seen.append([r.id for r in engine.step()])
        engine.check()
    assert seen == [[], ["a/0", "a/1"], [], [], ["b/0"]]
    assert engine.step() == []


def test_abort_returns_what_there_is(engine):
    whole = engine.generate("abc", FREE, chat=False)[0].token_ids.tolist()
    prompt = tuple(engine.model.tokenizer.encode("abc"))
    engine.add(Request("0", prompt, FREE))
    for _ in range(5):
        engine.step()
    (partial,) = engine.abort("0")
    assert (partial.finish_reason, partial.token_ids.tolist()) == ("abort", whole[:5])
    assert partial.text == engine.model.tokenizer.decode(whole[:5])
    assert engine.abort("0") == []


def test_abort_before_the_first_token(engine):
    engine.add(Request("a", (5,), replace(FREE, n=3, stop=("x",))))
    assert [(r.id, len(r.token_ids), r.text) for r in engine.abort("a")] == [
        ("a/0", 0, ""),
        ("a/1", 0, ""),
        ("a/2", 0, ""),
    ]


def test_an_id_in_flight_is_refused(engine):
    request = Request("a", (5,), FREE)
    engine.add(request)
    with pytest.raises(InputError, match=r"request \(a\): ids must differ"):
        engine.add(request)
    engine.abort("a")
    engine.add(request)
    engine.abort("a")


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ([], "there must be a request"),
        ([Request("a", (5,), FREE), Request("a", (6,), FREE)], "ids must differ"),
        ([Request("a", (5,), FREE), Request("b", (), FREE)], r"\(b\): a prompt has tokens"),
        ([Request("a", (5,), FREE), Request("b", (61,), FREE)], r"\(b\): token ids must be in the vocabulary"),
        ([Request("a", (5,) * 256, FREE)], "256 tokens, expected at most 255"),
    ],
)
def test_a_bad_batch_is_refused_before_any_of_it_runs(engine, batch, words):
    with pytest.raises(InputError, match=words):
        engine.sample(batch)


def test_a_cache_too_small_for_one_completion_is_refused_with_what_it_needs(llama):
    small = llama.engine(kv_cache_gb=0.00006)
    with pytest.raises(InputError, match=r"KV cache - got 16 pages \(\S+ GB\).*Raise engine.kv_cache_gb to 0.000\d+"):
        small.sample([Request("a", (5,), replace(FREE, max_tokens=250))])


def test_many_completions_in_a_small_cache_take_turns(llama):
    ask = [Request(str(i), (5, 6, 7 + i), replace(FREE, n=3, max_tokens=40)) for i in range(4)]
    expected = llama.engine().sample(ask)
    small = llama.engine(kv_cache_gb=0.00006)
    got = small.sample(ask)
    assert same(got, expected)
    assert small.counters().preemptions > 3
    assert any((r.provenance.path == Path.RECOMPUTE).any() for r in got)
    assert not any((r.provenance.path == Path.RECOMPUTE).any() for r in expected)
    small.check()


def test_a_known_beginning_is_not_run_again_and_moves_no_bit(llama, engine):
    first = Request("a", tuple(range(1, 40)), FREE)
    second = Request("b", (*range(1, 36), 50, 51), replace(FREE, n=2))
    expected = llama.engine().sample([second])
    engine.sample([first])
    got = engine.sample([second])
    assert same(got, expected)
    assert engine.counters().prefix_tokens == 32
    assert all(r.provenance.cached.all() for r in got)
    assert not any(r.provenance.cached.any() for r in expected)
    assert got[0].provenance.spans == expected[0].provenance.spans


def test_the_context_ends_a_completion(llama):
    (rollout,) = llama.engine(max_context=20).generate("abcdefg", FREE, chat=False)
    assert (len(rollout.token_ids), rollout.finish_reason) == (13, "length")
    (rollout,) = llama.engine().sample([Request("r", (5,) * 250, FREE)])
    assert len(rollout.token_ids) == 6


def test_a_failed_forward_loses_nothing(engine, monkeypatch):
    expected = engine.generate("abcdefghijklmnopq", replace(FREE, n=2))
    calls, real = [], module.draw

    def fails_now_and_then(*arguments):
        calls.append(1)
        if len(calls) % 3 == 0:
            raise MemoryError("injected")
        return real(*arguments)

    monkeypatch.setattr(module, "draw", fails_now_and_then)
    engine.add(Request("0", tuple(expected[0].prompt_ids.tolist()), replace(FREE, n=2)))
    done, failures = [], 0
    while engine.has_work:
        try:
            done += engine.step()
        except MemoryError:
            failures += 1
        engine.check()
    assert failures > 3
    assert same(sorted(done, key=lambda r: r.id), expected)


def test_a_failed_sample_leaves_the_engine_empty(engine, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(module, "draw", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.generate(["abc", "d"], replace(FREE, n=3))
    engine.check()
    assert not engine.has_work
    assert len(engine.generate("abc", FREE)[0].token_ids) == 24


def test_new_weights_serve_from_the_next_request_on(llama, engine):
    before = engine.generate("abc", FREE)
    moved = {name: tensor * 1.01 for name, tensor in llama.params.items()}
    engine.update_weights(moved, WeightVersion(1, digest(moved)))
    after = engine.generate("abc", FREE)
    assert (after[0].provenance.weight_version == 1).all()
    assert after[0].sampler_logprobs.contract.weight_versions == (1,)
    assert not np.array_equal(before[0].sampler_logprobs.values[:1], after[0].sampler_logprobs.values[:1])
    assert same(replace_params(llama, moved).generate("abc", FREE), after)
    engine.update_weights(llama.params, WeightVersion(2, digest(llama.params)))
    assert same(engine.generate("abc", FREE), before), "A -> B -> A returns every bit, and no key of B is left"


def replace_params(network, params):
    return replace(network, params=params).engine()


def test_an_identical_update_moves_only_the_number(llama, engine):
    before = engine.generate("abc", FREE)
    engine.update_weights(llama.params, replace(llama.version, number=1))
    assert engine.version == replace(llama.version, number=1)
    assert same(engine.generate("abc", FREE), before)


def test_a_refused_update_changes_no_result_and_no_version(llama, engine):
    before = engine.generate("abc", FREE)
    moved = {name: tensor * 1.01 for name, tensor in llama.params.items()}
    with pytest.raises(NumericsError):
        engine.update_weights(moved, replace(llama.version, number=1))
    moved["norm"] = moved["norm"][:-1]
    with pytest.raises(InputError, match="shape of norm"):
        engine.update_weights(moved, WeightVersion(1, digest(moved)))
    assert engine.version == llama.version
    assert same(engine.generate("abc", FREE), before)


def test_weights_that_are_not_the_versions_are_refused_at_the_start(llama):
    with pytest.raises(NumericsError):
        module.Engine(llama.model, llama.params, WeightVersion(0, "0" * 64), llama.engine().config)


def test_memory_counts_pages_and_bytes(llama, engine):
    empty = engine.memory()
    assert empty.kv_bytes == empty.pages_free * empty.page_bytes
    assert empty.weight_bytes == sum(tensor.nbytes for tensor in llama.params.values()), "a tied fp32 head is no copy"
    engine.add(Request("a", (5,) * 20, replace(FREE, n=2, max_tokens=20)))
    engine.step()
    engine.step()
    memory = engine.memory()
    assert (memory.pages_used, memory.pages_cached) == (3, 0)  # 1 shared, 2 partial
    assert memory.pages_free + memory.pages_used == empty.pages_free
    engine.abort("a")
    assert (engine.memory().pages_used, engine.memory().pages_cached) == (0, 1), "a full page may be found again"


def test_the_samplers_of_generation_config_do_not_leak_in(llama, tmp_path):
    """A model's own sampling defaults decide nothing: only the request does."""
    copy = tmp_path / "model"
    copy.mkdir()
    for file in llama.model.path.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    settings = json.loads((copy / "generation_config.json").read_text())
    (copy / "generation_config.json").write_text(json.dumps({**settings, "temperature": 0.1, "top_k": 1}))
    other = lockstep.Engine.load(str(copy), dtype="float32", kv_cache_gb=0.004)
    assert same(other.generate("abc", FREE), llama.engine().generate("abc", FREE))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cuda_engine_draws_tokens(llama):
    built = lockstep.Engine.load(str(llama.model.path), device="cuda", dtype="float32", kv_cache_gb=0.004)
    rollouts = built.generate(["abc", "x" * 40], replace(FREE, n=3))
    assert [len(r.token_ids) for r in rollouts] == [24] * 6
