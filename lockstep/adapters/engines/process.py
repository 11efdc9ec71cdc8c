"""Somebody else's software as a process: started, asked, paused, ended with everything that it started.

In: a script that speaks workers/protocol.py, its settings, questions. Out: its answers, one JSON line each, and its
peak memory.

A worker is a process group of this session, and not a session of its own: should we be killed while one of them is
stopped, the kernel sends the orphaned group SIGHUP and lets it go on, so that none stays behind. What it writes to
standard error, and whatever its libraries print, goes to a log.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lockstep.errors import StageError, message

LAST_WORDS = 2000  # characters of the log that a failure quotes
READ_AT_ONCE = 1 << 20
PROTOCOL = Path(__file__).with_name("workers")


class WorkerFailed(StageError):
    """A worker died, answered in time with nothing or with nonsense, or did not answer in time."""


@dataclass(frozen=True, slots=True)
class Program:
    """What a worker runs: a script, the Python for it, what it is told first, its environment variables.

    Limits are in seconds: until it is ready (a compilation may be part of that), and for each answer.
    """

    name: str
    python: Path
    script: Path
    settings: Mapping[str, Any]
    variables: Mapping[str, str] = field(default_factory=dict)
    start_limit: float = 900.0
    ask_limit: float = 900.0


class Worker:
    """A program that runs. Use it as a context: leaving it ends the whole process group."""

    def __init__(self, program: Program, log: Path) -> None:
        """Start the process; `start` waits until it is ready."""
        self.program, self.log = program, log
        self.peak_gib: float | None = None
        self._rest = b""
        log.parent.mkdir(parents=True, exist_ok=True)
        variables = [f"{name}={value}" for name, value in {"PYTHONPATH": PROTOCOL, **program.variables}.items()]
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                ["env", *variables, str(program.python), str(program.script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                process_group=0,
            )

    @property
    def name(self) -> str:
        return self.program.name

    def start(self) -> dict[str, str]:
        """Hand over the settings and wait until it is ready. Returns the versions of what it runs."""
        versions = self._exchange(self.program.settings, self.program.start_limit).get("versions")
        if not isinstance(versions, dict):
            raise self._failed("the first answer names versions", repr(versions), "a mapping")
        return versions

    def ask(self, **question: Any) -> dict[str, Any]:
        """One piece of work, and what came of it. Raises `WorkerFailed`."""
        answer = self._exchange(question, self.program.ask_limit)
        memory = group_peak_gib(self._process.pid)
        self.peak_gib = max(filter(None, (self.peak_gib, memory)), default=None)
        return answer

    def pause(self) -> None:
        """Stop the whole group: a thread that spins while it waits would slow the others down."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """End the group. Safe to call twice, and when it has ended of its own accord."""
        self._signal(signal.SIGKILL)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # what we had to say can no longer be flushed
                    stream.close()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _exchange(self, question: Mapping[str, Any], limit: float) -> dict[str, Any]:
        assert self._process.stdin is not None, "it was opened with a pipe"
        try:
            self._process.stdin.write(json.dumps(dict(question)).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as cause:
            raise self._failed("it must listen", self._ending() or cause, "a process that reads") from cause
        line = self._line(time.monotonic() + limit, limit)
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise self._failed("an answer is a JSON object", repr(line[:200]), "one line of JSON")
        return answer

    def _line(self, deadline: float, limit: float) -> bytes:
        """The next line. Raises `WorkerFailed` when there is none by the deadline."""
        assert self._process.stdout is not None, "it was opened with a pipe"
        pipe = self._process.stdout.fileno()
        pieces = [self._rest]
        while b"\n" not in pieces[-1]:
            ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise self._failed("it must answer in time", f"nothing within {limit:g} s", "an answer")
            piece = os.read(pipe, READ_AT_ONCE)
            if not piece:
                raise self._failed("it must answer", self._ending() or "a closed stream", "an answer")
            pieces.append(piece)
        line, _, self._rest = b"".join(pieces).partition(b"\n")
        return line

    def _ending(self) -> str:
        """How the process ended; empty while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(timeout=5.0)
            return f"exit by {signal.Signals(-code).name}" if code < 0 else f"exit with code {code}"
        return ""

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _failed(self, rule: str, got: object, expected: str) -> WorkerFailed:
        text = self.log.read_text(encoding="utf-8", errors="replace").strip()[-LAST_WORDS:]
        do = f"Its last words, from {self.log}:\n{text}\n"
        return WorkerFailed(message(f"worker ({self.name})", rule, got=got, expected=expected, do=do))


def group_peak_gib(group: int) -> float | None:
    """The sum over a process group of each process's largest resident size so far, in GiB; None: not known here.

    Pages that processes share are counted once for each of them.
    """
    peaks = list(_peaks_kib(group))
    return sum(peaks) / 2**20 if peaks else None


def _peaks_kib(group: int) -> Iterator[int]:
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):  # it ended while we looked
            if os.getpgid(int(status.parent.name)) == group:
                fields = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
                yield int(fields.get("VmHWM", "0 kB").split()[0])
