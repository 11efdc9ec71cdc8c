"""How a process ends, in words."""

from __future__ import annotations

import signal
from types import SimpleNamespace

import pytest

from lockstep.engine.remote import process as module
from lockstep.engine.remote.process import EngineProcess
from lockstep.errors import EngineDied


class Ended:
    """A process that has ended, or that ends when it is killed."""

    pid = 7

    def __init__(self, exitcode: int | None) -> None:
        self.exitcode, self.killed, self.waited = exitcode, False, 0.0

    def join(self, seconds: float | None = None) -> None:
        self.waited += seconds or 0.0

    def kill(self) -> None:
        self.killed, self.exitcode = True, -signal.SIGKILL

    def is_alive(self) -> bool:
        return self.exitcode is None


def built(exitcode: int | None, *messages: object) -> EngineProcess:
    """An `EngineProcess` around it, whose channel holds `messages` and then nothing."""
    found = EngineProcess.__new__(EngineProcess)
    left = list(messages)
    found._process = Ended(exitcode)  # type: ignore[assignment]
    found._channel = SimpleNamespace(get=lambda _: left.pop(0) if left else None)  # type: ignore[assignment]
    found._silence = 0.0
    return found


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "exit code 0"),
        (1, "exit code 1"),
        (-9, "signal 9 (SIGKILL)"),
        (-11, "signal 11 (SIGSEGV)"),
        (-40, "signal 40 (of no name)"),
    ],
)
def test_exit_codes_have_words(code, text):
    died = built(code).obituary("at work", ["a/0", "b/0"])
    assert isinstance(died, EngineDied)
    assert died.in_flight == ("a/0", "b/0")
    assert str(died).startswith(
        f"engine process (7): it must outlive its work - got {text} at work with 2 rollouts in flight: a/0, b/0, "
        "expected no end before `close`. "
    )
    assert ("memory ran out" in str(died)) == (code == -9)
    assert "Start another and send what was in flight again" in str(died)


def test_many_rollouts_are_counted_and_all_are_in_the_error():
    lost = [f"r/{i}" for i in range(20)]
    died = built(1).obituary("at work", lost)
    assert "20 rollouts in flight: r/0, r/1, r/2, r/3, r/4, r/5, r/6, r/7 and 12 more, expected" in str(died)
    assert died.in_flight == tuple(lost)
    assert "with 0 rollouts in flight, expected" in str(built(1).obituary("at work", []))


def test_who_is_not_dead_yet_is_killed_after_a_grace():
    found = built(None)
    died = found.obituary("before it was ready", [])
    assert found._process.killed  # type: ignore[attr-defined]
    assert found._process.waited == module._GRACE  # type: ignore[attr-defined]
    assert "signal 9 (SIGKILL) before it was ready" in str(died)


def test_who_is_silent_is_killed_at_once_and_the_message_says_so():
    found = built(None)
    died = found.obituary("at work", [], "no sign of life for 3 s")
    assert "got no sign of life for 3 s at work" in str(died)
    assert "It was killed; look for what holds it up, or raise `patience`" in str(died)


def test_silence_is_counted_while_somebody_listens_and_ends_with_a_message():
    found = built(None)
    for _ in range(4):
        assert found.take(0.5, patience=2.0) is None
    assert found.take(0.0, patience=2.0) is None, "who does not wait cannot be kept waiting"
    with pytest.raises(TimeoutError, match="no sign of life for 2 s"):
        found.take(0.5, patience=2.0)
    found._channel.get = lambda _: "a word"  # type: ignore[method-assign]
    assert found.take(0.5, patience=2.0) == "a word"
    found._channel.get = lambda _: None  # type: ignore[method-assign]
    assert found.take(1.9, patience=2.0) is None


def test_the_last_words_of_a_dead_process_are_heard_even_if_its_pipe_stays_open():
    found = built(-9, None, "last words", None)
    assert found.take(0.1, patience=9.0) == "last words"
    with pytest.raises(EOFError):
        found.take(0.1, patience=9.0)
