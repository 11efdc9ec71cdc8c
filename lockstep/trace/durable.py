"""Files that are whole or not there: atomic replacement, appended lines, one owner a directory.

In: bytes. Out: bytes on the disk (fsync'd), or a `StorageError` and a file system as it was.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from lockstep.errors import InputError, StorageError, message

_ADVICE = {
    errno.ENOSPC: "Free some space, then continue with --resume",
    errno.EDQUOT: "Free some of your quota, then continue with --resume",
    errno.EFBIG: "Raise the file size limit (ulimit -f), then continue with --resume",
    errno.EROFS: "Give a directory on a writable file system with output_dir=",
    errno.EACCES: "Give a directory that you may write to with output_dir=",
    errno.EPERM: "Give a directory that you may write to with output_dir=",
    errno.ENOTDIR: "Give a directory, not a file, with output_dir=",
    errno.EEXIST: "Give a directory, not a file, with output_dir=",
}


@contextmanager
def storage(path: Path) -> Iterator[None]:
    """Turn an `OSError` of the block into a `StorageError` about `path` that says what to do."""
    try:
        yield
    except OSError as cause:
        number = cause.errno or 0
        raise StorageError(
            message(
                f"run directory ({path})",
                "must be writable and have room; what was there before is whole",
                got=cause.strerror or cause,
                expected="a finished write",
                do=_ADVICE.get(number, "Mend the file system, then continue with --resume"),
            )
        ) from cause


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A binary file that becomes `path`, whole and on disk, when the block ends well; otherwise nothing changes."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_directory(path.parent)


def replace_file(path: Path, data: bytes) -> None:
    """Atomically make `data` the content of `path`."""
    with replacing(path) as file:
        file.write(data)


def append_line(path: Path, line: bytes) -> None:
    """Append one line (its newline included) with one write and an fsync; a failed write leaves the file as it was."""
    assert line.endswith(b"\n") and line.count(b"\n") == 1, "one line, newline included"
    with storage(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            try:
                rest = memoryview(line)
                while rest:  # a second turn happens only on a full disk, and says why
                    rest = rest[os.write(descriptor, rest) :]
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)
        if size == 0:
            sync_directory(path.parent)


def whole_lines(data: bytes) -> bytes:
    """`data` up to its last newline: a line that a kill cut off has none."""
    return data[: data.rfind(b"\n") + 1]


def sync_directory(path: Path) -> None:
    """Put the directory's entries (new names, renames) on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Lock:
    """Exclusive ownership of a directory, held by the kernel: it ends with the process, however that dies."""

    def __init__(self, path: Path) -> None:
        """Take the lock file `path`. Raises `InputError` naming the owner when another process holds it."""
        with storage(path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._descriptor, 64, 0).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            raise InputError(
                message(
                    f"run directory ({path.parent})",
                    "one process writes a run",
                    got=f"process {owner or 'unknown'} at work in it",
                    expected="a directory that is free",
                    do="Wait for that process to end, or give another directory with output_dir=",
                )
            ) from None
        except OSError as cause:
            os.close(self._descriptor)
            raise StorageError(
                message(
                    f"run directory ({path.parent})", "its file system must support locks (flock)",
                    got=cause.strerror or cause, expected="a lock",
                    do="Give a directory on a local disk with output_dir=",
                )
            ) from cause  # fmt: skip
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        """Give the directory back. Safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
