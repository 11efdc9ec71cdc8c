"""The process's side, run in a thread here: commands before steps, errors that can be sent, an end in every case."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from lockstep.core import Request, SamplingParams
from lockstep.engine.remote import worker
from lockstep.engine.remote.channel import Channel
from lockstep.engine.remote.messages import Abort, Add, Alive, Answer, Failed, Finished, Leave, Look, Retry, Update
from lockstep.engine.remote.shared import Layout, SharedMemory
from lockstep.engine.remote.worker import Worker
from lockstep.errors import InputError, LockstepError, NumericsError, StageError
from lockstep.weight_update import WeightVersion

FREE = SamplingParams(max_tokens=12, ignore_eos=True)
PROMPT = tuple(range(1, 20))


class Pair:
    """A worker that runs, and the owner's end of its channel."""

    def __init__(self, network) -> None:
        layout = Layout.of(network.model.arch.parameter_shapes(), network.params["norm"].dtype)
        memories = SharedMemory(layout.num_bytes), SharedMemory(layout.num_bytes)
        self.places = memories[1].write(network.params, layout)
        self.version = replace(network.version, number=1)
        self.engine = network.engine()
        mine, theirs = multiprocessing.Pipe()
        self.channel, self.other = Channel(mine), Channel(theirs)
        self.worker = Worker(self.other, self.engine, memories)
        self.thread = threading.Thread(target=self.worker.run, daemon=True)

    def start(self, *commands: object) -> None:
        """Begin when all of `commands` are there."""
        for command in commands:
            self.channel.put(command)
        while self.other._inbox.qsize() < len(commands):
            time.sleep(0.001)
        self.thread.start()

    def heard(self, wanted: type, count: int = 1) -> list:
        found = []
        while len(found) < count:
            message = self.channel.get(30.0)
            assert message is not None, "nothing was said"
            found += [message] if isinstance(message, wanted) else []
        return found


@pytest.fixture
def pair(llama) -> Iterator[Pair]:
    built = Pair(llama)
    yield built
    if built.thread.ident is None:
        built.thread.start()
    built.channel.put(Leave())
    built.thread.join(30.0)
    assert not built.thread.is_alive()


def test_steps_run_without_being_told_and_rollouts_come_as_they_finish(pair, llama):
    short, long = Request("short", PROMPT, FREE), Request("long", PROMPT, replace(FREE, max_tokens=60, n=2))
    pair.start(Add(short), Add(long))
    found = [r for message in pair.heard(Finished, 2) for r in message.rollouts]
    assert [r.id for r in found] == ["short/0", "long/0", "long/1"]
    expected = llama.engine().sample([short, long])
    assert [r.token_ids.tobytes() for r in found] == [r.token_ids.tobytes() for r in expected]


def test_commands_that_are_there_come_before_the_next_step_and_in_order(pair):
    pair.start(Add(Request("a", PROMPT, FREE)), Update(7, 1, pair.places, pair.version, None, None), Abort(8, "a"))
    update, abort = pair.heard(Answer, 2)
    assert (update.number, update.error, abort.number) == (7, None, 8)
    (rollout,) = abort.value
    assert (rollout.finish_reason, len(rollout.token_ids)) == ("abort", 0)
    assert pair.engine.version == pair.version


@pytest.mark.parametrize(
    ("raised", "kind", "text"),
    [
        (NumericsError("not finite"), NumericsError, "not finite"),
        (InputError("yours"), InputError, "yours"),
        (AssertionError("ours"), AssertionError, "ours"),
        (RuntimeError("torch's"), RuntimeError, "torch's"),
        (MemoryError("too much"), MemoryError, "too much"),
        (KeyError("k"), StageError, "engine process: raised KeyError - 'k'"),
        (type("Odd", (RuntimeError,), {})("odd"), StageError, "engine process: raised Odd - odd"),
        (SystemExit(3), StageError, "engine process: raised SystemExit - 3"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_of_a_step_is_sent_and_the_step_waits_for_a_command(pair, monkeypatch, raised, kind, text):
    calls = []

    def step() -> list:
        calls.append(1)
        raise raised

    real = pair.engine.step
    monkeypatch.setattr(pair.engine, "step", step)
    pair.start(Add(Request("a", PROMPT, FREE)))
    (failed,) = pair.heard(Failed)
    assert (type(failed.error), str(failed.error)) == (kind, text)
    assert any("in step" in note for note in failed.error.__notes__)
    assert pair.channel.get(0.1) is None
    assert len(calls) == 1, "no second try by itself"
    pair.channel.put(Retry())
    pair.heard(Failed)
    assert len(calls) == 2
    monkeypatch.setattr(pair.engine, "step", real)
    pair.channel.put(Retry())
    (finished,) = pair.heard(Finished)
    assert [r.id for r in finished.rollouts] == ["a/0"]


def test_an_error_of_a_command_is_its_answer(pair, monkeypatch):
    def wrong() -> None:
        raise AssertionError("a page is free twice")

    monkeypatch.setattr(pair.engine, "check", wrong)
    stale = Update(2, 1, pair.places, WeightVersion(0, "0" * 64), None, None)
    pair.start(Look(1, "check"), stale, Look(3, "memory"))
    check, update, memory = pair.heard(Answer, 3)
    assert (check.number, type(check.error), str(check.error)) == (1, AssertionError, "a page is free twice")
    assert (update.number, type(update.error)) == (2, InputError)
    assert (memory.number, memory.error, memory.value) == (3, None, pair.engine.memory())


def test_a_command_that_does_not_exist_is_an_error_of_ours(pair):
    pair.start("sing")
    (failed,) = pair.heard(Failed)
    assert (type(failed.error), str(failed.error)) == (AssertionError, "no such command: 'sing'")


def test_it_says_that_it_is_alive_when_nobody_finishes(pair, monkeypatch):
    monkeypatch.setattr(worker, "_REPORT_EVERY", 0.0)
    pair.start(Add(Request("a", PROMPT, FREE)))
    assert len(pair.heard(Alive, 11)) == 11  # and the twelfth token is the end
    pair.heard(Finished)


def test_it_ends_when_it_is_told_and_when_the_owner_is_gone(llama):
    for command in (Leave(), None):
        pair = Pair(llama)
        pair.thread.start()
        if command is None:
            pair.other._inbox.put(None)  # what the reader says at the end of the pipe
        else:
            pair.channel.put(command)
        pair.thread.join(30.0)
        assert not pair.thread.is_alive()


def test_errors_can_be_pickled_with_their_notes(pair):
    def raising() -> None:
        raise NumericsError("x")

    value, error = worker._attempt(raising)
    assert value is None
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, LockstepError)
    assert copy.__notes__ == error.__notes__
    assert worker._attempt(lambda: 5) == (5, None)
