"""An engine in a process of its own, behind the methods of `Engine` that a pipeline uses.

In: `Request`s, weights with their version. Out: `Rollout`s, with the bits that an engine in this process gives them.
One caller at a time. The engine runs while its owner does something else, and never waits for it.

    owner   add, abort, update ---- commands, in order ----> between two steps
            step <-- inbox <------- rollouts, answers ------ steps for as long as there is work
            weights --copy--> [ memory 0 | memory 1 ] <----- the one that serves is read in place

New weights are written where none serve; once they are taken the memories change places. A process of torch brings its
own pool of threads, so two of them on few cores are fastest with `threads` = half the cores each. A program that owns a
remote engine keeps its work under `if __name__ == "__main__"`: the new process imports it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lockstep.config import EngineConfig
from lockstep.core import Request, Rollout
from lockstep.engine.accounting import Counters, Memory
from lockstep.engine.limits import Limits
from lockstep.engine.remote import messages
from lockstep.engine.remote.process import EngineProcess
from lockstep.engine.remote.shared import Layout, SharedMemory
from lockstep.engine.request import twice
from lockstep.engine.weights import Weights
from lockstep.errors import EngineDied, InputError, LockstepError, message
from lockstep.models import Model
from lockstep.weight_update import Probe, UpdatePolicy, WeightVersion

_GLANCE = 0.2  # seconds between two looks at whether the process lives; its end of the pipe usually says so at once


@dataclass(frozen=True, slots=True)
class _Open:
    """An update that has been sent and not answered."""

    number: int
    index: int
    version: WeightVersion


class RemoteEngine:
    """Draws tokens in another process. Close it, or use it as a context; it also ends with this process.

    Every method raises `EngineDied` once the process has ended, however it ended.
    """

    patience: float = 600.0
    """Seconds of waiting without any sign of life after which the process is ended. With ``UpdatePolicy("wait")`` what
    is in flight must finish in that time."""

    def __init__(
        self,
        model: Model,
        params: Mapping[str, Tensor],
        version: WeightVersion,
        config: EngineConfig | None = None,
        device: str | torch.device = "cpu",
        threads: int = 0,
    ) -> None:
        """Start the process and wait until it is ready; `threads` of torch in it, 0: its default.

        Raises what `Engine` raises.
        """
        self.model, self.config = model, config or EngineConfig()
        dtype = getattr(torch, self.config.dtype)
        self.limits = Limits.of(model.arch, self.config, dtype)
        self._version = version
        self._layout = Layout.of(model.arch.parameter_shapes(), dtype)
        self._memories = SharedMemory(self._layout.num_bytes), SharedMemory(self._layout.num_bytes)
        self._serving = 0
        self._door = Weights(model.arch, dtype, self.config.head_dtype, "cpu")  # holds none: one update at a time
        self._update: _Open | None = None
        self._number = 0
        self._answers: dict[int, messages.Answer] = {}
        self._awaited: int | None = None
        self._due: dict[str, dict[str, None]] = {}  # request -> its rollouts that have not come; in order
        self._finished: list[Rollout] = []  # have come, and are not handed out yet
        self._failure: Exception | None = None  # of a step; not raised yet
        self._failed = False  # the last step failed: it waits to be tried again
        self._gone: LockstepError | None = None
        self._silence = 0.0
        self._ready = False
        places = self._memories[0].write(params, self._layout)
        self._process = EngineProcess(
            messages.Start(self._memories, str(model.path), version, places, self.config, device, threads)
        )
        try:
            self._take_until(lambda: self._ready or self._failure is not None)
            if self._failure is not None:
                raise self._failure
        finally:
            if not self._ready:
                self.close()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def version(self) -> WeightVersion:
        """The weights that serve, as far as the process has said."""
        return self._version

    @property
    def has_work(self) -> bool:
        """Whether rollouts were asked for that have not been handed out."""
        return bool(self._due or self._finished)

    def add(self, request: Request) -> None:
        """Queue a request; it runs on the weights of every update that was made before. Raises as `Engine.add` does."""
        self._take_all()
        if request.id in self._due or any(rollout.request_id == request.id for rollout in self._finished):
            raise twice(request.id)
        self.limits.check(request)
        self._due[request.id] = {f"{request.id}/{i}": None for i in range(request.params.n)}
        self._process.put(messages.Add(request))

    def step(self, timeout: float = 0.05) -> list[Rollout]:
        """The rollouts that have finished since the last call; if there are none, wait `timeout` seconds for some.

        Raises what a step of the engine raised, once; then the next call has that step run again.
        """
        if self._failed:
            self._failed = False
            self._process.put(messages.Retry())
        try:
            self._take_all()
            if self._due and not self._finished:
                self._take_until(lambda: bool(self._finished) or self._failure is not None, timeout)
        except EngineDied:
            if not self._finished:  # what came before the end is handed out before the news of it
                raise
        if not self._finished and self._failure is not None:
            failure, self._failure, self._failed = self._failure, None, True
            raise failure
        finished, self._finished = self._finished, []
        return finished

    def abort(self, request_id: str) -> list[Rollout]:
        """End a request now; return what its unfinished completions have so far (none: no such request in flight)."""
        self._take_all()
        if request_id not in self._due:
            return []
        rollouts = self._ask(messages.Abort(self._next(), request_id))
        owed = self._due.pop(request_id, {})
        assert owed.keys() == {rollout.id for rollout in rollouts}, "what is not finished is aborted"
        if not self._due:
            self._failure = None  # of a step that nobody needs any more
        return rollouts

    def update_weights(
        self,
        params: Mapping[str, Tensor],
        version: WeightVersion,
        policy: UpdatePolicy | None = None,
        *,
        share: bool = False,
        probe: Probe | None = None,
    ) -> None:
        """Have a copy of `params` served by the steps that follow, or raise what `Engine.update_weights` raises.

        `share` is there for the sake of one signature: the copy is made in any case, into the memory of both processes.
        """
        del share
        self._take_all()  # one whose caller was interrupted may have been answered
        self._door.begin(version)
        try:
            index = 1 - self._serving
            places = self._memories[index].write(params, self._layout)
            command = messages.Update(self._next(), index, places, version, policy, probe)
            self._update = _Open(command.number, index, version)
        finally:
            if self._update is None:
                self._door.close()
        self._ask(command)

    def memory(self) -> Memory:
        """What the engine holds now; its weights lie in memory that this process sees too."""
        return self._ask(messages.Look(self._next(), "memory"))

    def counters(self) -> Counters:
        """What has happened since the engine was made."""
        return self._ask(messages.Look(self._next(), "counters"))

    def check(self) -> None:
        """Prove the invariants of the engine, and that everything that was asked for is somewhere, once."""
        self._ask(messages.Look(self._next(), "check"))
        due = [rollout for rollouts in self._due.values() for rollout in rollouts]
        held = [rollout.id for rollout in self._finished]
        assert all(self._due.values()), "a request without rollouts is due"
        assert len({*due, *held}) == len(due) + len(held), "a rollout came twice"

    def close(self) -> None:
        """End the process. What is in flight is dropped. Nothing happens if it has ended."""
        if self._gone is None:
            rule, do = "it is used before `close`", "Start another"
            self._gone = InputError(message(self._process.name, rule, got="a call after it", expected="none", do=do))
        self._process.close(at_once=bool(self._due) or not self._ready)

    def __enter__(self) -> RemoteEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _ask(self, command: messages.Abort | messages.Update | messages.Look) -> Any:
        """Send a command and wait for its answer."""
        self._take_all()
        self._process.put(command)
        self._awaited = command.number
        try:
            self._take_until(lambda: command.number in self._answers)
        finally:
            self._awaited = None
        answer = self._answers.pop(command.number)
        if answer.error is not None:
            raise answer.error
        return answer.value

    def _take_all(self) -> None:
        while self._take(0.0):
            pass

    def _take_until(self, enough: Callable[[], bool], seconds: float = float("inf")) -> None:
        """Take messages until there is `enough`, or `seconds` have passed."""
        deadline = time.monotonic() + seconds
        while not enough() and (left := deadline - time.monotonic()) > 0:
            self._take(min(left, _GLANCE))

    def _take(self, seconds: float) -> bool:
        """Take one message in, if one comes within `seconds`. Raises `EngineDied` if none can come any more."""
        if self._gone is not None:
            raise self._gone
        try:
            found = self._process.take(seconds, self.patience)
        except EOFError:
            raise self._bury() from None
        except TimeoutError as silence:
            raise self._bury(str(silence)) from None
        if found is not None:
            self._sort_in(found)
        return found is not None

    def _sort_in(self, found: Any) -> None:
        match found:
            case messages.Finished():
                self._receive(found.rollouts)
            case messages.Failed():
                self._failure = found.error
            case messages.Answer():
                self._sort_in_answer(found)
            case messages.Ready():
                self._ready = True

    def _sort_in_answer(self, answer: messages.Answer) -> None:
        if self._update is not None and answer.number == self._update.number:
            if answer.error is None:
                self._serving, self._version = self._update.index, self._update.version
            self._update = None
            self._door.close()
        if answer.number == self._awaited:
            self._answers[answer.number] = answer
        elif isinstance(answer.value, list):  # of an abort whose caller was interrupted: not to be lost
            self._receive(answer.value)

    def _receive(self, rollouts: list[Rollout]) -> None:
        for rollout in rollouts:
            due = self._due[rollout.request_id]
            del due[rollout.id]  # who came twice is not due any more
            if not due:
                del self._due[rollout.request_id]
        self._finished += rollouts

    def _bury(self, why: str = "") -> EngineDied:
        """The one error of every call from now on."""
        doing = "at work" if self._ready else "before it was ready"
        if self._update is not None:
            doing = f"during the update to version {self._update.version}"
        lost = [rollout for rollouts in self._due.values() for rollout in rollouts]
        self._gone = died = self._process.obituary(doing, lost, why)
        return died
