"""Writes happen whole or not at all, also on a full disk and under a kill."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lockstep.errors import InputError, StorageError
from lockstep.trace.durable import Lock, append_line, replace_file, replacing, storage, whole_lines


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """A real limit of the kernel: writes beyond `size` bytes of a file come back short, then fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_line_that_does_not_fit_leaves_no_part_of_itself(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    append_line(file, b"x" * 99 + b"\n")
    with disk_of(150), pytest.raises(StorageError, match="expected a finished write") as failure:
        append_line(file, b"y" * 99 + b"\n")
    assert file.read_bytes() == b"x" * 99 + b"\n"
    assert isinstance(failure.value.__cause__, OSError) and "--resume" in str(failure.value)
    append_line(file, b"z\n")
    assert file.read_bytes() == b"x" * 99 + b"\nz\n"


def test_a_replacement_that_does_not_fit_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    file = tmp_path / "manifest.json"
    replace_file(file, b"old")
    with disk_of(100), pytest.raises(StorageError):
        replace_file(file, b"n" * 1000)
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]


def test_an_exception_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    replace_file(tmp_path / "a", b"old")
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert (tmp_path / "a").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "Free some space"),
        (errno.EROFS, "writable file system"),
        (errno.EACCES, "may write to"),
        (errno.EIO, "Mend the file system"),
    ],
)
def test_every_failure_says_what_to_do(number: int, advice: str) -> None:
    with pytest.raises(StorageError, match=advice) as failure, storage(Path("runs/x")):
        raise OSError(number, os.strerror(number))
    assert f"run directory (runs/x): must be writable and have room; what was there before is whole - got {os.strerror(number)}" in str(failure.value)  # fmt: skip # noqa: E501


def test_a_kill_in_mid_write_leaves_whole_lines(tmp_path: Path) -> None:
    """A child appends as fast as it can and is killed; whatever is on the disk is a prefix of what it wrote."""
    file = tmp_path / "metrics.jsonl"
    program = (
        "import sys; from pathlib import Path; from lockstep.trace.durable import append_line\n"
        "for n in range(10**9): append_line(Path(sys.argv[1]), f'{n} {\"x\" * 200}\\n'.encode())"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(file)])
    while not file.exists() or file.stat().st_size < 4096:
        assert child.poll() is None
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    lines = whole_lines(file.read_bytes()).splitlines()
    assert lines == [f"{n} {'x' * 200}".encode() for n in range(len(lines))] and len(lines) > 10


def test_a_lock_is_exclusive_names_its_owner_and_dies_with_it(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from lockstep.trace.durable import Lock\n"
        "lock = Lock(Path(sys.argv[1]) / '.lock'); print('held', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdin is not None
    assert child.stdout.readline() == "held\n"
    with pytest.raises(InputError, match=f"one process writes a run - got process {child.pid} at work"):
        Lock(tmp_path / ".lock")
    child.kill()
    child.wait()
    child.stdin.close()
    child.stdout.close()
    lock = Lock(tmp_path / ".lock")
    with pytest.raises(InputError, match=f"process {os.getpid()}"):
        Lock(tmp_path / ".lock")
    lock.release()
    lock.release()
    Lock(tmp_path / ".lock").release()


def test_a_lock_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        Lock(tmp_path / "missing" / ".lock")


def test_whole_lines() -> None:
    assert whole_lines(b"a\nb\nc") == b"a\nb\n" and whole_lines(b"abc") == b"" and whole_lines(b"a\n") == b"a\n"
