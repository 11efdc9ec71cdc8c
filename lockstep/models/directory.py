"""A model's directory on disk: read its JSON, write a new one so that it is there whole or not at all.

In: paths. Out: parsed JSON, or a directory that appeared in one rename.

    .name.XXXX.partial/  (locked by its writer)  --fsync, rename-->  name/
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lockstep.errors import ModelError, StorageError, message


def read_json(file: Path, *, required: bool = True) -> dict[str, Any]:
    """The object in `file`; an absent optional file gives an empty one. Raises `ModelError`."""
    if not required and not file.exists():
        return {}
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            message(
                f"model ({file.parent})", f"{file.name} must be there", got=_seen(file.parent), expected=file.name,
                do="Give an HF model directory, or a name from `lockstep models list`",
            )
        ) from None  # fmt: skip
    except (OSError, ValueError, RecursionError) as cause:
        raise _damaged(file, cause) from None
    if not isinstance(tree, dict):
        raise _damaged(file, f"a {type(tree).__name__}")
    return tree


def write_json(file: Path, tree: object) -> None:
    """Write indented JSON, as transformers does."""
    file.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def whole_directory(target: Path) -> Iterator[Path]:
    """Yield an empty directory that becomes `target`, replacing it, when the block ends well.

    On any failure `target` is as it was and the partial directory is gone. What a killed writer left is removed by the
    next one. Raises `StorageError` when the disk refuses (full, no permission).
    """
    with storage(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        lock = os.open(partial, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            partial.chmod(0o755)
            yield partial
            for folder, _, names in os.walk(partial):
                for name in [*names, "."]:
                    flush_to_disk(Path(folder, name))
            _replace(partial, target)
            flush_to_disk(target.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            os.close(lock)


@contextmanager
def storage(target: Path) -> Iterator[None]:
    """Turn an `OSError` of writing `target` into a `StorageError`."""
    try:
        yield
    except OSError as cause:
        raise StorageError(
            message(
                f"storage ({target})", "it must be written whole", got=cause.strerror or cause,
                expected="a writable directory with enough space", do="Free space or choose another directory",
            )
        ) from cause  # fmt: skip


@contextmanager
def exclusive(lock_file: Path) -> Iterator[None]:
    """Hold a lock that other processes wait for; it ends with the process, however that ends."""
    with storage(lock_file):
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def flush_to_disk(path: Path) -> None:
    """fsync a file or a directory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace(partial: Path, target: Path) -> None:
    """Rename over `target`. A non-empty directory cannot be renamed over, so the old one steps aside first."""
    if not target.exists():
        partial.rename(target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    target.rename(aside / "old")
    try:
        partial.rename(target)
    except OSError:
        (aside / "old").rename(target)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _remove_abandoned(target: Path) -> None:
    prefix, suffix = f".{target.name}.", ".partial"
    for partial in [p for p in target.parent.iterdir() if p.name.startswith(prefix) and p.name.endswith(suffix)]:
        with suppress(OSError):  # somebody else removed it, or holds the lock: then it is not abandoned
            handle = os.open(partial, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(partial, ignore_errors=True)
            finally:
                os.close(handle)


def _seen(directory: Path) -> str:
    if not directory.exists():
        return "no such directory"
    if not directory.is_dir():
        return "a file"
    names = sorted(entry.name for entry in directory.iterdir())
    return (", ".join(names[:8]) + (", ..." if len(names) > 8 else "")) or "an empty directory"


def _damaged(file: Path, got: object) -> ModelError:
    return ModelError(
        message(
            f"model ({file})", "the file must be a JSON object", got=got, expected="valid JSON in UTF-8",
            do="Copy or pull the model again",
        )
    )  # fmt: skip
