"""Which program wrote these files? Told by what is in them, not by what they are called.

In: a file or a directory. Out: its `Format`, or the run, opened. Unknown or ambiguous content is an error that lists
what was seen.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lockstep.adapters.foreign import episodes, own, pipeline_batches, pipeline_rl, prime_rl, responses, trl, verl
from lockstep.adapters.foreign.lines import first_values, kind_of, readable
from lockstep.adapters.foreign.run import ForeignRun, Format
from lockstep.errors import InputError, message

FORMATS: tuple[Format, ...] = (
    own.FORMAT,
    trl.FORMAT,
    verl.FORMAT,
    prime_rl.FORMAT,
    episodes.FORMAT,
    pipeline_rl.FORMAT,
    pipeline_batches.FORMAT,
    responses.FORMAT,
)
"""Of one framework the earlier says more: it is taken where a directory holds both."""

MAX_FILES = 20_000
SHOWN = 6


@dataclass(slots=True)
class Survey:
    """What was found: files by format, what is damaged, and words for the first files of no format."""

    files: dict[Format, list[Path]] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    num_others: int = 0

    def other(self, text: str) -> None:
        """Note a file that no reader knows."""
        self.num_others += 1
        if len(self.others) < SHOWN:
            self.others.append(text)

    @property
    def seen(self) -> str:
        """All of it in one phrase."""
        found = [f"{len(files)} of {fmt.name} ({files[0]})" for fmt, files in self.files.items()]
        more = self.num_others - len(self.others) + max(0, len(self.damaged) - SHOWN)
        rest = [f"and {more} more"] if more else []
        return "; ".join([*found, *self.others, *self.damaged[:SHOWN], *rest]) or "no files"


def detect(path: Path) -> Format:
    """The format of a file or directory. Raises `InputError` if it has none, or more than one framework's."""
    return _chosen(path, survey(path))


def read(path: Path) -> ForeignRun:
    """The run at `path`, recognised and opened; observations are read as they are asked for. Raises `InputError`."""
    found = survey(path)
    chosen = _chosen(path, found)
    passed = [
        f"{len(files)} files of {fmt.name} ({files[0]}, ...) are not read: {chosen.name} say more"
        for fmt, files in found.files.items()
        if fmt is not chosen
    ]
    run = chosen.opened(path, found.files[chosen])
    return replace(run, left_out=(*found.damaged, *passed), damaged=len(found.damaged))


def survey(path: Path) -> Survey:
    """Look at a file, or at every file below a directory. Raises `InputError` for what is neither."""
    found = Survey()
    with readable(path):
        if path.is_file():
            _look(path, found)
            return found
        for file in _below(path):
            try:
                _look(file, found)
            except InputError as cause:
                found.damaged.append(str(cause))
    return found


def _below(path: Path) -> Iterator[Path]:
    """Files below a directory, sorted, without hidden ones."""
    if not path.is_dir():
        do = "Give what the run wrote: a directory, or one of its files"
        rule, expected = "must be a file or a directory", "one that is there"
        raise InputError(message(f"run ({path})", rule, got="neither", expected=expected, do=do))
    count = 0
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            file = Path(folder) / name
            if not name.startswith(".") and file.is_file():
                count += 1
                yield file
        if count > MAX_FILES:
            rule, do = "is looked through file by file", "Give the directory that holds the rollouts only"
            raise InputError(
                message(f"run ({path})", rule, got=f"more than {MAX_FILES} files", expected="fewer", do=do)
            )


def _look(file: Path, found: Survey) -> None:
    kind = kind_of(file)
    if kind == "Parquet":
        names, metadata = _schema(file)
        fits = [fmt for fmt in FORMATS if fmt.of_parquet and fmt.of_parquet(names, metadata)]
        words = f"Parquet with {', '.join(names[:SHOWN])}"
    elif kind == "JSON":
        fits, words = _of_json(file)
    else:
        fits, words = [], kind
    if len(fits) == 1:
        found.files.setdefault(fits[0], []).append(file)
    else:
        found.other(f"{file}: {words}" + (f" (both {' and '.join(fmt.name for fmt in fits)})" if fits else ""))


def _of_json(file: Path) -> tuple[list[Format], str]:
    """Formats of the first value that has any; words for the first value. Nothing behind that is looked at."""
    words = "empty"
    for at, value in enumerate(first_values(file)):
        words = words if at else f"JSON, {_words(value)}"
        if fits := [fmt for fmt in FORMATS if fmt.of_json and fmt.of_json(value)]:
            return fits, words
    return [], words


def _schema(file: Path) -> tuple[list[str], Mapping[bytes, bytes]]:
    try:
        with pq.ParquetFile(file) as parquet:
            return list(parquet.schema_arrow.names), parquet.schema_arrow.metadata or {}
    except (OSError, ValueError, pa.ArrowException) as cause:
        rule, do = "must be whole Parquet", "Leave the file out, or write it again"
        raise InputError(message(str(file), rule, got=cause, expected="a readable file", do=do)) from cause


def _words(value: object) -> str:
    if isinstance(value, list):
        return f"a list of {_words(value[0])}" if value else "an empty list"
    if not isinstance(value, dict):
        return "no object"
    if value.get("object") == responses.CHUNK:
        return "pieces of a streamed response (save the whole one)"
    return f"keys {', '.join(map(str, list(value)[:SHOWN]))}"


def _chosen(path: Path, found: Survey) -> Format:
    frameworks = {fmt.framework for fmt in found.files}
    if len(frameworks) == 1:
        return next(fmt for fmt in FORMATS if fmt in found.files)
    if not frameworks:
        rule, expected = "holds no run that is known", ", or ".join(fmt.name for fmt in FORMATS)
        do = "Give the directory or file with the rollouts"
    else:
        rule, expected = "holds one framework's run", "one of them"
        do = "Give the directory of one run"
    raise InputError(message(f"run ({path})", rule, got=found.seen, expected=expected, do=do))
