"""The process of a remote engine as its owner sees it: started, talked to, dead or alive.

In: `Start`. Out: messages; the end, however it came about, and words for it. No wait here is longer than it was told.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Sequence
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any

from lockstep.engine.remote import worker
from lockstep.engine.remote.channel import Channel
from lockstep.engine.remote.messages import Leave, Start
from lockstep.errors import EngineDied, message

_GRACE = 2.0  # seconds in which it may leave by itself
_NAMED = 8  # rollouts in a message


class EngineProcess:
    """Ends with this object, and with this process."""

    def __init__(self, start: Start) -> None:
        """Start it. It inherits `start.memories`, which cannot be handed to anybody else afterwards."""
        context = multiprocessing.get_context("spawn")
        mine, theirs = context.Pipe()
        process = context.Process(target=worker.main, args=(theirs, start), name="lockstep engine", daemon=True)
        resource_tracker.ensure_running()  # it unblocks signals when it starts
        before = signal.pthread_sigmask(signal.SIG_BLOCK, worker.HELD_BACK)  # inherited; see `worker.main`
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()  # so that the pipe ends with the process
            for memory in start.memories:
                memory.handed_over()
        self._process, self._channel = process, Channel(mine)
        self._end = Finalize(self, _end, (self._process, self._channel, 0.0), exitpriority=10)
        self._silence = 0.0

    @property
    def pid(self) -> int:
        """What the system calls it."""
        assert self._process.pid is not None, "it was started"
        return self._process.pid

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"engine process ({self.pid})"

    def put(self, message: Any) -> None:
        """Send a message, without waiting."""
        self._channel.put(message)

    def take(self, seconds: float, patience: float) -> Any | None:
        """The next message; None if none comes within `seconds`.

        Raises `EOFError` when the process has ended and all its messages are taken, and `TimeoutError` when it was
        waited for longer than `patience` seconds in all without any message.
        """
        found = self._channel.get(seconds)
        if found is None and not self._process.is_alive():
            found = self._channel.get(1.0)  # the end may have overtaken the last words
            if found is None:  # a process that was forked from this one may hold the pipe open
                raise EOFError("the process has ended")
        if found is not None:
            self._silence = 0.0
            return found
        self._silence += seconds  # of waiting: where nobody listens, nobody is silent
        if self._silence > patience:
            raise TimeoutError(f"no sign of life for {patience:g} s")
        return None

    def obituary(self, doing: str, lost: Sequence[str], why: str = "") -> EngineDied:
        """See to it that the process has ended, and say how; `lost` are ids of rollouts."""
        if why:
            self._process.kill()
        _await(self._process, _GRACE)
        code = self._process.exitcode or 0
        named = ", ".join(lost[:_NAMED]) + (f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else "")
        got = f"{why or _ending(code)} {doing} with {len(lost)} rollouts in flight{': ' * bool(lost)}{named}"
        rule, do = "it must outlive its work", _advice(code, why)
        return EngineDied(message(self.name, rule, got=got, expected="no end before `close`", do=do), tuple(lost))

    def close(self, *, at_once: bool) -> None:
        """End it, if it has not ended: at once, or when it has obeyed what was sent before."""
        if self._end.still_active():
            self._end.cancel()
            self._channel.put(Leave())
            _end(self._process, self._channel, 0.0 if at_once else _GRACE)


def _end(process: BaseProcess, channel: Channel, grace: float) -> None:
    _await(process, grace)
    channel.close()


def _await(process: BaseProcess, grace: float) -> None:
    """By itself within `grace` seconds, or killed: it has nothing to save."""
    process.join(grace)
    if process.exitcode is None:
        process.kill()
        process.join()


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    names: dict[int, str] = {number: number.name for number in signal.Signals}
    return f"signal {-code} ({names.get(-code, 'of no name')})"


def _advice(code: int, why: str) -> str:
    again = "Start another and send what was in flight again: the same requests give the same tokens"
    if why:
        return f"It was killed; look for what holds it up, or raise `patience`. {again}"
    if code == -signal.SIGKILL:
        return f"If nobody killed it, memory ran out: lower engine.kv_cache_gb. {again}"
    return f"Its last words are on stderr. {again}"
