"""The process in which a remote engine runs: commands between two steps, steps for as long as there is work.

In: `Start`, then commands. Out: rollouts as they finish, answers, errors. It never waits for its owner to read, and it
ends with its owner.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from lockstep import models
from lockstep.engine.engine import Engine
from lockstep.engine.remote.channel import Channel
from lockstep.engine.remote.messages import (
    Abort,
    Add,
    Alive,
    Answer,
    Failed,
    Finished,
    Leave,
    Look,
    Ready,
    Retry,
    Start,
    Update,
)
from lockstep.engine.remote.shared import SharedMemory
from lockstep.errors import LockstepError, StageError, boundary

HELD_BACK = (signal.SIGINT, signal.SIGTERM)
"""A terminal and a service manager send these to the whole group; whether the engine ends is for its owner to say."""

_REPORT_EVERY = 1.0  # seconds
_PLAIN = (AssertionError, MemoryError, RuntimeError)  # errors of Python's that are told from their type and text alone


def main(connection: Connection, start: Start) -> None:
    """The whole life of the process. It is started with `HELD_BACK` blocked, so that none arrives before this line."""
    for number in HELD_BACK:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)
    threading.Thread(target=_end_with_owner, name="owner", daemon=True).start()
    channel = Channel(connection)
    engine, error = _attempt(lambda: _set_up(start))
    if error is not None:
        channel.put(Failed(error))
    else:
        channel.put(Ready())
        Worker(channel, engine, start.memories).run()
    channel.flush()


class Worker:
    """Obeys commands and runs steps."""

    def __init__(self, channel: Channel, engine: Engine, memories: tuple[SharedMemory, SharedMemory]) -> None:
        self._channel, self._engine, self._memories = channel, engine, memories
        self._stalled = False  # a step has failed, and nothing has changed since
        self._reported = time.monotonic()

    def run(self) -> None:
        """Until `Leave`, or until the owner is gone. Commands that are there come before the next step."""
        while True:
            busy = self._engine.has_work and not self._stalled
            try:
                command = self._channel.get(0.0 if busy else None)
            except EOFError:
                return
            if isinstance(command, Leave):
                return
            if command is None:
                self._step()
            else:
                self._stalled = False
                self._obey(command)

    def _obey(self, command: Any) -> None:
        value, error = _attempt(lambda: self._do(command))
        if isinstance(command, Abort | Update | Look):
            self._channel.put(Answer(command.number, value, error))
        elif error is not None:
            self._channel.put(Failed(error))

    def _do(self, command: Any) -> Any:
        engine = self._engine
        match command:
            case Add():
                return engine.add(command.request)
            case Abort():
                return engine.abort(command.request_id)
            case Update():
                params = self._memories[command.index].read(command.places)
                return engine.update_weights(params, command.version, command.policy, share=True, probe=command.probe)
            case Look():
                return getattr(engine, command.what)()
            case Retry():
                return None  # that it came is all it says
            case _:
                raise AssertionError(f"no such command: {command!r}")

    def _step(self) -> None:
        rollouts, error = _attempt(self._engine.step)
        now = time.monotonic()
        if error is not None:
            self._stalled = True
            self._channel.put(Failed(error))
        elif rollouts:
            self._channel.put(Finished(rollouts))
        elif now - self._reported < _REPORT_EVERY:
            return
        else:
            self._channel.put(Alive())
        self._reported = now


def _set_up(start: Start) -> Engine:
    if start.threads:
        torch.set_num_threads(start.threads)
    model = models.load(start.directory)
    params = start.memories[0].read(start.places)
    return Engine(model, params, start.version, start.config, start.device, share=True)


def _attempt(action: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """What `action` returns, or an error that can be sent, with the traceback as a note."""
    try:
        with boundary("engine process"):
            return action(), None
    except LockstepError as raised:
        error, cause = raised, raised.__cause__
        for kind in _PLAIN:
            if isinstance(raised, StageError) and type(cause) is kind:
                error = kind(str(cause))
        error.add_note(f"In the engine process:\n{''.join(traceback.format_exception(cause or raised))}")
        return None, error


def _end_with_owner() -> None:
    """Leave as soon as the owner has ended, in the middle of whatever is being done.

    The owner is watched itself where the kernel can do that: its end of a pipe may live on in processes it forked.
    """
    owner = multiprocessing.parent_process()
    assert owner is not None, "a worker is started by another process"
    try:
        handle = os.pidfd_open(owner.pid or 0)
    except (AttributeError, OSError):
        owner.join()
    else:
        if os.getppid() == owner.pid:
            wait([handle])
    os._exit(1)
