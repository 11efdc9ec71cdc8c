"""An engine in a process of its own: the same bits, the same errors, and what happens when a process ends."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import resource_tracker
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lockstep.config import EngineConfig
from lockstep.core import Request, Rollout, SamplingParams
from lockstep.engine import Engine, RemoteEngine
from lockstep.errors import EngineDied, InputError, LockstepError, NumericsError
from lockstep.models.checkpoint import digest
from lockstep.weight_update import Probe, UpdatePolicy, WeightVersion

FREE = SamplingParams(max_tokens=12, ignore_eos=True)
LONG = replace(FREE, max_tokens=230)
MANY = replace(LONG, n=8)  # long enough that whoever has seen it at work can do something about it
PROMPT = tuple(range(1, 20))


def remote_of(network, **changes) -> RemoteEngine:
    config = EngineConfig(dtype=network.dtype, kv_cache_gb=0.004)
    return RemoteEngine(**{
        "model": network.model, "params": network.params, "version": network.version, "config": config, "threads": 1,
        **changes,
    })  # fmt: skip


@pytest.fixture(scope="module")
def shared(network) -> Iterator[RemoteEngine]:
    with remote_of(network("llama", "float32")) as built:
        yield built


@pytest.fixture
def engine(shared, llama) -> Iterator[RemoteEngine]:
    """One process for most tests; it comes with the weights of `llama` and must be left without work."""
    if shared.version.digest != llama.version.digest:
        shared.update_weights(llama.params, above(shared, llama.params))
    yield shared
    assert not shared.has_work
    shared.check()
    assert shared.memory().pages_used == 0


def above(engine: RemoteEngine, params) -> WeightVersion:
    return WeightVersion(engine.version.number + 1, digest(params))


def moved(network, factor: float = 1.05):
    return {name: tensor * factor for name, tensor in network.params.items()}


def finish(engine: Engine | RemoteEngine) -> list[Rollout]:
    done = []
    while engine.has_work:
        done += engine.step()
    return sorted(done, key=lambda rollout: rollout.id)


def run(engine: Engine | RemoteEngine, requests) -> list[Rollout]:
    for request in requests:
        engine.add(request)
    return finish(engine)


def content(rollout: Rollout) -> tuple:
    """All that does not depend on what happened to be run beside it."""
    support, prompt = rollout.support, rollout.prompt_logprobs
    return (
        rollout.id, rollout.task_id, rollout.prompt_ids.tobytes(), rollout.token_ids.tobytes(), rollout.text,
        rollout.finish_reason, rollout.params, rollout.sampler_logprobs.values.tobytes(),
        rollout.sampler_logprobs.contract, rollout.provenance.weight_version.tobytes(), rollout.provenance.spans,
        None if support is None else (support.ids.tobytes(), support.offsets.tobytes()),
        None if prompt is None else (prompt.values.tobytes(), prompt.contract),
    )  # fmt: skip


def said(action: Callable[[], object]) -> tuple[type, str]:
    """Type and text of the error that `action` raises."""
    with pytest.raises((LockstepError, AssertionError)) as failure:
        action()
    return type(failure.value), str(failure.value)


@contextmanager
def stopped(engine: RemoteEngine) -> Iterator[None]:
    """The process does nothing while inside, whatever is sent to it."""
    os.kill(engine.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(engine.pid, signal.SIGCONT)


def later(seconds: float, number: int, pid: int) -> None:
    threading.Timer(seconds, os.kill, (pid, number)).start()


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.005)


def lives(pid: int) -> bool:
    """Whether it runs; who has ended and is not yet waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# The same engine


REQUESTS = [
    Request("plain", PROMPT, replace(FREE, n=3), "task"),
    Request("greedy", PROMPT, replace(FREE, temperature=0.0)),
    Request("cut", PROMPT[3:], replace(FREE, top_k=9, top_p=0.9, min_p=0.01, temperature=0.7, n=2)),
    Request("adjusted", PROMPT, replace(FREE, repetition_penalty=1.2, logit_bias=((4, -1.5),), bad_words=((5, 6),))),
    Request("stopped", PROMPT, replace(FREE, max_tokens=60, stop=("a", "7"), ignore_eos=False)),
    Request("prompt", PROMPT, replace(FREE, prompt_logprobs=True)),
    Request("long", tuple(i % 60 for i in range(150)), replace(LONG, max_tokens=100, n=2, seed=7)),
]


def test_every_bit_is_that_of_an_engine_in_this_process(llama, engine):
    here = Engine(llama.model, llama.params, engine.version, engine.config)
    assert [content(r) for r in run(engine, REQUESTS)] == [content(r) for r in run(here, REQUESTS)]


def test_it_starts_and_runs_though_the_terminal_says_stop_and_leaves_nothing_behind(network):
    """Ctrl-C reaches the whole group, at any time; and two threads there give the bits of one here."""
    qwen = network("qwen3", "bfloat16")
    resource_tracker.ensure_running()  # of Python's, one a process; its pipe stays open
    before = memory_files(), len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
    known, told = {child.pid for child in multiprocessing.active_children()}, []

    def stop() -> None:
        until(lambda: {c.pid for c in multiprocessing.active_children()} - known)
        (pid,) = {c.pid for c in multiprocessing.active_children()} - known
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid or 0, number)
            told.append(number)

    thread = threading.Thread(target=stop)
    thread.start()
    engine = remote_of(qwen, threads=2)
    thread.join()
    for request in REQUESTS:
        engine.add(request)
    os.kill(engine.pid, signal.SIGINT)
    assert [content(r) for r in finish(engine)] == [content(r) for r in run(qwen.engine(), REQUESTS)]
    assert told == [signal.SIGINT, signal.SIGTERM]
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(told), "here they arrive as before"
    pid = engine.pid
    del engine, thread
    gc.collect()  # nobody closed it
    assert not lives(pid)
    assert (memory_files(), len(list(Path("/proc/self/fd").iterdir())), threading.active_count()) == before


def memory_files() -> int:
    return Path("/proc/self/maps").read_text().count("lockstep-weights")


@pytest.mark.parametrize(
    "request_",
    [
        Request("empty", (), FREE),
        Request("outside", (1, 999), FREE),
        Request("too long", tuple([1] * 300), FREE),
        Request("too many", PROMPT, replace(FREE, n=5000)),
        Request("stop", PROMPT, replace(FREE, stop=("",))),
    ],
    ids=lambda request: request.id,
)
def test_a_request_is_refused_in_the_same_words(llama, engine, request_):
    assert said(lambda: engine.add(request_)) == said(lambda: llama.engine().add(request_))
    assert not engine.has_work


def test_an_id_is_in_use_until_its_last_rollout_is_handed_out(llama, engine):
    here = llama.engine()
    for built in (engine, here):
        built.add(Request("a", PROMPT, FREE))
    assert said(lambda: engine.add(Request("a", PROMPT, FREE))) == said(lambda: here.add(Request("a", PROMPT, FREE)))
    until(lambda: not engine.memory().pages_used)
    with pytest.raises(InputError, match="ids must differ"):
        engine.add(Request("a", PROMPT, FREE))
    (first,) = finish(engine)
    assert content(run(engine, [Request("a", PROMPT, FREE)])[0]) == content(first)


def test_a_step_hands_out_all_that_has_come_however_much_that_is(engine):
    """Each rollout carries its support: together they are more than a pipe holds."""
    wide = replace(LONG, max_tokens=100, top_k=60, n=4)
    for i in range(6):
        engine.add(Request(str(i), PROMPT, wide))
    until(lambda: (engine._take_all(), len(engine._finished) == 24)[1])
    found = engine.step(0.0)
    assert len(found) == len({rollout.id for rollout in found}) == 24
    assert sum(rollout.support.ids.nbytes for rollout in found if rollout.support) > 1 << 18


def test_a_step_waits_as_long_as_it_is_told_and_not_at_all_without_work(engine):
    assert engine.step(60.0) == []
    engine.add(Request("a", PROMPT, LONG))
    with stopped(engine):
        started = time.monotonic()
        assert engine.step(0.1) == []
        assert engine.step(0.0) == []
        assert 0.09 < time.monotonic() - started < 10.0
    assert len(finish(engine)) == 1


def test_abort_hands_over_what_there_is(llama, engine):
    request = Request("a", PROMPT, MANY)
    whole = run(engine, [request])
    engine.add(request)
    until(lambda: engine.memory().pages_used)
    parts = engine.abort("a")
    assert not engine.has_work
    assert len(parts) == 8
    for part, unmoved in zip(parts, whole, strict=True):
        assert part.finish_reason == "abort"
        assert np.array_equal(part.token_ids, unmoved.token_ids[: len(part.token_ids)])
        assert len(part.token_ids) < len(unmoved.token_ids)
    assert engine.abort("a") == engine.abort("never there") == []


def test_counters_and_memory_are_those_of_the_engine(llama, engine):
    here = llama.engine().memory()
    assert replace(engine.memory(), pages_free=0, pages_cached=0) == replace(here, pages_free=0, pages_cached=0)
    before = engine.counters().prefix_tokens
    for name in ("a", "b"):
        run(engine, [Request(name, PROMPT, FREE)])
    assert engine.counters().prefix_tokens >= before + 16


# Weights


def test_weights_are_read_where_they_were_written_and_the_memories_change_places(llama, engine):
    before, number = engine._serving, engine.version.number
    (old,) = run(engine, [Request("a", PROMPT, FREE)])
    new = moved(llama)
    engine.update_weights(new, above(engine, new))
    assert (engine._serving, engine.version) == (1 - before, WeightVersion(number + 1, digest(new)))
    (other,) = run(engine, [Request("a", PROMPT, FREE)])
    here = Engine(llama.model, new, engine.version, engine.config)
    assert content(other) == content(run(here, [Request("a", PROMPT, FREE)])[0]) != content(old)
    norm = engine._memories[engine._serving].tensor(engine._layout.places["norm"])
    norm.mul_(-1)  # against all rules: only to see that nobody holds a copy
    assert content(run(engine, [Request("b", PROMPT, FREE)])[0]) != content(run(here, [Request("b", PROMPT, FREE)])[0])


def wrong_updates(llama, engine):
    """(parameters, version, probe) that an engine refuses, each for another reason."""
    new, next_ = moved(llama), engine.version.number + 1
    nan = {**new, "norm": new["norm"] * float("nan")}
    probe = Probe(np.arange(3, 11, dtype=np.int32), np.zeros(7, np.float32))
    without = {name: tensor for name, tensor in new.items() if name != "norm"}
    return [
        (new, WeightVersion(next_, "0" * 64), None),
        (nan, WeightVersion(next_, digest(nan)), None),
        (without, WeightVersion(next_, digest(without)), None),
        ({**new, "more": new["norm"]}, WeightVersion(next_, digest(new)), None),
        ({**new, "norm": new["norm"][:-1]}, WeightVersion(next_, digest(new)), None),
        ({**new, "norm": new["norm"].double()}, WeightVersion(next_, digest(new)), None),
        (new, WeightVersion(engine.version.number, digest(new)), None),
        (new, WeightVersion(next_, digest(new)), probe),
    ]


def test_a_refused_update_says_the_same_and_changes_nothing(llama, engine):
    here = Engine(llama.model, llama.params, engine.version, engine.config)
    (before,), version = run(engine, [Request("a", PROMPT, FREE)]), engine.version
    serving = engine._memories[engine._serving]
    held = {name: serving.tensor(place).clone() for name, place in engine._layout.places.items()}
    kinds = set()
    for params, number, probe in wrong_updates(llama, engine):
        heard = said(lambda p=params, n=number, q=probe: engine.update_weights(p, n, probe=q))
        assert heard == said(lambda p=params, n=number, q=probe: here.update_weights(p, n, probe=q))
        kinds.add(heard)
    assert len(kinds) == 8
    assert (engine.version, engine._memories[engine._serving]) == (version, serving)
    assert all(torch.equal(serving.tensor(place), held[name]) for name, place in engine._layout.places.items())
    assert content(run(engine, [Request("a", PROMPT, FREE)])[0]) == content(before)
    engine.update_weights(llama.params, above(engine, llama.params))  # the door is open


def test_the_error_of_the_process_brings_its_traceback_as_a_note(llama, engine):
    with pytest.raises(NumericsError) as failure:
        engine.update_weights(llama.params, WeightVersion(engine.version.number + 1, "0" * 64))
    assert any("In the engine process:" in note and "weights.py" in note for note in failure.value.__notes__)


@pytest.mark.parametrize("kv", ["keep", "salt", "recompute"])
def test_an_update_in_flight_is_on_record_in_every_token(llama, engine, kv):
    old, new, request = engine.version.number, moved(llama), Request("a", PROMPT, MANY)
    before = run(engine, [request])
    version = above(engine, new)
    engine.add(request)
    until(lambda: engine.memory().pages_used)
    engine.update_weights(new, version, UpdatePolicy("keep", kv))
    for rollout, unmoved in zip(finish(engine), before, strict=True):
        versions, spans = rollout.provenance.weight_version, rollout.provenance.spans
        assert versions.tolist() == sorted(versions.tolist())
        assert set(versions.tolist()) == {old, old + 1} == set(rollout.sampler_logprobs.contract.weight_versions)
        kept = int((versions == old).sum())
        assert np.array_equal(rollout.token_ids[:kept], unmoved.token_ids[:kept])
        assert np.array_equal(rollout.sampler_logprobs.values[:kept], unmoved.sampler_logprobs.values[:kept])
        assert [span.version for span in spans] == sorted(span.version for span in spans)
        assert (spans[-1].version, spans[-1].end) == (old + 1, len(PROMPT) + 229)
        # the first token of the new weights was decided by the position after the last that the old ones had run
        assert spans[-1].start == (0 if kv == "recompute" else len(PROMPT) + kept - 1)


def test_what_is_sent_after_an_update_runs_on_its_weights(llama, engine):
    old, new = engine.version.number, moved(llama)
    engine.add(Request("before", PROMPT, LONG))
    engine.update_weights(new, above(engine, new))
    engine.add(Request("after", PROMPT, LONG))
    after, before = finish(engine)
    assert set(after.provenance.weight_version.tolist()) == {old + 1}
    assert set(before.provenance.weight_version.tolist()) <= {old, old + 1}


@pytest.mark.parametrize("pause", ["wait", "abort"])
def test_wait_and_abort(llama, engine, pause):
    old, new, request = engine.version.number, moved(llama), Request("a", PROMPT, MANY)
    before = run(engine, [request])
    version = above(engine, new)
    engine.add(request)
    until(lambda: engine.memory().pages_used)
    engine.update_weights(new, version, UpdatePolicy(pause))
    found = finish(engine)
    assert all((rollout.provenance.weight_version == old).all() for rollout in found)
    if pause == "wait":
        assert [content(rollout) for rollout in found] == [content(rollout) for rollout in before]
    else:
        assert {rollout.finish_reason for rollout in found} == {"abort"}
        assert [rollout.id for rollout in found] == [rollout.id for rollout in before]


# Errors, and callers that are interrupted


def test_a_step_that_fails_says_the_same_and_can_be_left_or_tried_again(llama, engine):
    huge = {**llama.params, "norm": llama.params["norm"] * 1e37, "embedding": llama.params["embedding"] * 1e4}
    request = Request("a", PROMPT, FREE)
    here = Engine(llama.model, huge, WeightVersion(0, digest(huge)), engine.config)
    here.add(request)
    engine.update_weights(huge, above(engine, huge))
    engine.add(request)
    for _ in range(2):
        assert said(lambda: [engine.step(60.0) for _ in range(9)]) == said(here.step)
    engine.update_weights(llama.params, above(engine, llama.params))
    here.update_weights(llama.params, WeightVersion(1, digest(llama.params)))
    (there,), (mine,) = finish(engine), finish(here)
    assert np.array_equal(there.token_ids, mine.token_ids)
    engine.update_weights(huge, above(engine, huge))
    engine.add(request)
    assert said(lambda: [engine.step(60.0) for _ in range(9)])[0] is NumericsError
    (nothing,) = engine.abort("a")
    assert len(nothing.token_ids) == 0


def test_the_failure_of_a_step_that_nobody_needs_any_more_is_forgotten(llama, engine):
    huge = {**llama.params, "norm": llama.params["norm"] * 1e37, "embedding": llama.params["embedding"] * 1e4}
    engine.update_weights(huge, above(engine, huge))
    engine.add(Request("a", PROMPT, FREE))
    until(lambda: (engine._take_all(), engine._failure is not None)[1])
    engine.abort("a")
    engine.update_weights(llama.params, above(engine, llama.params))
    assert len(run(engine, [Request("a", PROMPT, FREE)])) == 1


@contextmanager
def interrupted(seconds: float) -> Iterator[None]:
    """What a second Ctrl-C does to the caller, wherever it is, after some time."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_an_abort_whose_caller_was_interrupted_loses_nothing(engine):
    engine.add(Request("a", PROMPT, MANY))
    until(lambda: engine.memory().pages_used)
    with stopped(engine), interrupted(0.1):
        engine.abort("a")
    assert [(r.id, r.finish_reason) for r in finish(engine)] == [(f"a/{i}", "abort") for i in range(8)]


def test_an_update_whose_caller_was_interrupted_is_open_until_it_is_answered(llama, engine):
    new, serving = moved(llama), engine._serving
    version = above(engine, new)
    here = llama.engine()
    here.begin_update(version)
    with stopped(engine):
        with interrupted(0.1):
            engine.update_weights(new, version)
        assert said(lambda: engine.update_weights(new, version)) == said(lambda: here.update_weights(new, version))
        assert engine._serving == serving
    until(lambda: (engine.step(0.05), engine.version == version)[1])
    assert engine._serving == 1 - serving
    engine.update_weights(llama.params, above(engine, llama.params))
    assert engine._serving == serving


# Everything that is asked for comes once


ACTION = st.one_of(
    st.tuples(st.just("add"), st.integers(1, 4), st.integers(1, 60)),
    st.tuples(st.just("step"), st.sampled_from([0.0, 0.01]), st.none()),
    st.tuples(st.just("abort"), st.integers(0, 9), st.none()),
    st.tuples(st.just("update"), st.sampled_from(["keep", "wait", "abort"]), st.sampled_from(["keep", "recompute"])),
)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=st.lists(ACTION, min_size=3, max_size=14))
def test_every_completion_is_handed_out_once(llama, engine, actions):
    asked, found, names = set(), [], []
    for what, first, second in actions:
        if what == "add":
            names.append(f"{len(names)}/x")  # an id may have a slash in it
            asked |= {f"{names[-1]}/{i}" for i in range(first)}
            engine.add(Request(names[-1], PROMPT, replace(FREE, n=first, max_tokens=second)))
        elif what == "step":
            found += engine.step(first)
        elif what == "abort" and first < len(names):
            found += engine.abort(names[first])
        elif what == "update":
            params = moved(llama, 1.0 + 0.01 * (engine.version.number % 3))
            engine.update_weights(params, above(engine, params), UpdatePolicy(first, second))
        engine.check()
    while engine.has_work:
        found += engine.step()
    assert sorted(rollout.id for rollout in found) == sorted(asked)
    for rollout in found:
        spans = rollout.provenance.spans
        assert [span.version for span in spans] == sorted(span.version for span in spans)
        seen = rollout.sampler_logprobs.contract.weight_versions
        assert set(rollout.provenance.weight_version.tolist()) == set(seen) <= {span.version for span in spans}
        assert len(rollout.token_ids) == len(rollout.sampler_logprobs) == len(rollout.provenance)
    engine.check()
    assert engine.memory().pages_used == 0


# Processes that end


def test_wrong_weights_at_the_start_say_the_same_and_no_process_stays(llama):
    children = {child.pid for child in multiprocessing.active_children()}
    wrong = {"version": WeightVersion(0, "0" * 64)}
    here = said(lambda: Engine(llama.model, llama.params, wrong["version"], EngineConfig(dtype="float32")))
    assert said(lambda: remote_of(llama, **wrong)) == here
    assert {child.pid for child in multiprocessing.active_children()} == children


def test_killed_before_the_first_command(llama):
    with remote_of(llama) as engine:
        os.kill(engine.pid, signal.SIGKILL)
        until(lambda: not engine._process._process.is_alive())  # a zombie's threads may still hold the pipe
        first = said(lambda: engine.add(Request("a", PROMPT, FREE)))
        assert first[0] is EngineDied
        assert f"engine process ({engine.pid})" in first[1]
        assert "signal 9 (SIGKILL) at work with 0 rollouts in flight, expected" in first[1]
        new = moved(llama)
        for call in (
            engine.step, engine.memory, engine.check, lambda: engine.abort("a"),
            lambda: engine.update_weights(new, WeightVersion(1, digest(new))),
        ):  # fmt: skip
            assert said(call) == first
        assert not engine.has_work


def test_killed_in_the_middle_of_rollouts(llama):
    with remote_of(llama) as engine:
        for i in range(8):
            engine.add(Request(f"short {i}", PROMPT, replace(FREE, max_tokens=i + 1)))
            engine.add(Request(f"long {i}", PROMPT, LONG))
        channel = engine._process._channel
        until(channel._inbox.qsize)  # somebody has finished
        os.kill(engine.pid, signal.SIGKILL)
        until(lambda: not channel._reader.is_alive())
        started, found = time.monotonic(), engine.step()
        assert found, "what came before the end"
        with pytest.raises(EngineDied) as failure:
            while True:
                found += engine.step(60.0)
        assert time.monotonic() - started < 10.0
        handed_out = [rollout.id for rollout in found]
        asked = [f"{kind} {i}/0" for i in range(8) for kind in ("short", "long")]
        assert sorted([*handed_out, *failure.value.in_flight]) == sorted(asked), "each once"
        lost = [name for name in asked if name in failure.value.in_flight]
        assert f"{len(lost)} rollouts in flight: {', '.join(lost[:8])}" in str(failure.value)
        assert ("more" in str(failure.value)) == (len(lost) > 8)
        assert said(engine.step) == (EngineDied, str(failure.value)), "and every time"


def test_killed_in_the_middle_of_an_update(llama):
    with remote_of(llama) as engine:
        engine.add(Request("a", PROMPT, replace(LONG, n=2)))
        until(lambda: engine.memory().pages_used)
        os.kill(engine.pid, signal.SIGSTOP)
        later(0.2, signal.SIGKILL, engine.pid)
        new, started = moved(llama), time.monotonic()
        with pytest.raises(EngineDied, match="during the update to version 1@") as failure:
            engine.update_weights(new, WeightVersion(1, digest(new)))
        assert time.monotonic() - started < 10.0
        assert failure.value.in_flight == ("a/0", "a/1")
        assert engine.version == llama.version


def test_a_process_that_does_not_answer_is_ended(llama):
    engine = remote_of(llama)
    engine.patience = 0.5
    engine.add(Request("a", PROMPT, LONG))
    os.kill(engine.pid, signal.SIGSTOP)
    with pytest.raises(EngineDied, match=r"no sign of life for 0.5 s at work with 1 rollouts in flight: a/0"):
        while True:
            engine.step(0.2)
    assert not lives(engine.pid)
    engine.close()
    engine.close()


OWNER = """
import os, signal, sys, time
from lockstep import models
from lockstep.config import EngineConfig
from lockstep.core import Request, SamplingParams
from lockstep.weight_update import WeightVersion
from lockstep.engine import RemoteEngine
from lockstep.models.checkpoint import digest, read_parameters
import torch

def main():
    model = models.load(sys.argv[1])
    params = read_parameters(model.path, model.arch, torch.float32)
    config = EngineConfig(dtype="float32", kv_cache_gb=0.004)
    engine = RemoteEngine(model, params, WeightVersion(0, digest(params)), config, threads=1)
    bystander = os.fork()  # it holds the owner's end of the pipe, as a pool of workers would
    if bystander == 0:
        time.sleep(60)
        os._exit(0)
    for i in range(50):
        engine.add(Request(str(i), tuple(range(1, 20)), SamplingParams(max_tokens=230, n=4, ignore_eos=True)))
    engine.step()
    print(engine.pid, bystander, flush=True)
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("ending", ["killed", "finished"])
def test_it_ends_with_its_owner_and_says_nothing(llama, tmp_path, ending):
    script, words = tmp_path / "owner.py", tmp_path / "words"
    script.write_text(OWNER)
    root = Path(__file__).resolve().parents[2]
    with words.open("w") as file, (tmp_path / "pids").open("w") as pids:
        done = subprocess.run(
            [sys.executable, str(script), str(llama.model.path), ending],
            stdout=pids, stderr=file, env=os.environ | {"PYTHONPATH": str(root)}, timeout=120,
        )  # fmt: skip
    pid, bystander = map(int, (tmp_path / "pids").read_text().split())
    assert done.returncode == (-signal.SIGKILL if ending == "killed" else 0)
    try:
        assert lives(bystander)
        until(lambda: not lives(pid), 5.0)
    finally:
        os.kill(bystander, signal.SIGKILL)
    spoken = [line for line in words.read_text().splitlines() if not line.startswith("compiling CPU kernels")]
    assert spoken == []  # a machine that has never run one compiles first, and says so


def test_after_close_every_call_says_so(llama):
    with remote_of(llama) as engine:
        run(engine, [Request("a", PROMPT, FREE)])
        process = engine._process._process
    assert process.exitcode == 0
    kind, text = said(lambda: engine.add(Request("a", PROMPT, FREE)))
    assert (kind, "it is used before `close`" in text) == (InputError, True)
    assert said(engine.step) == (kind, text)
