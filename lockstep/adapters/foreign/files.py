"""Files of a run in the order in which it wrote them, and the rule that one folder holds one run.

In: paths. Out: paths by the numbers in their names, or an error that says which folders there are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from lockstep.errors import InputError, message

_NUMBERS = re.compile(r"([0-9]+)")


def in_order(files: Sequence[Path]) -> list[Path]:
    """Sorted as people count: ``2.jsonl`` before ``10.jsonl``, folder by folder."""
    return sorted(files, key=lambda file: [_key(part) for part in file.parts])


def one_folder(path: Path, files: Sequence[Path]) -> list[Path]:
    """The files in order. Raises `InputError` if they lie in several folders, which then are several runs."""
    folders = sorted({file.parent for file in files})
    if len(folders) > 1:
        raise InputError(
            message(
                str(path), "holds one run", got=f"files of {len(folders)} folders ({_listed(path, folders)})",
                expected="one folder", do="Give one of these folders",
            )
        )  # fmt: skip
    return in_order(files)


def step_of(file: Path) -> int | None:
    """The number of the nearest folder called ``step_N``."""
    for part in reversed(file.parts[:-1]):
        if found := re.fullmatch(r"step_([0-9]{1,15})", part):
            return int(found[1])
    return None


def _listed(path: Path, folders: Sequence[Path]) -> str:
    names = [str(folder.relative_to(path)) if folder.is_relative_to(path) else str(folder) for folder in folders[:4]]
    return ", ".join(names) + (", ..." if len(folders) > 4 else "")


def _key(part: str) -> list[tuple[int, str]]:
    pieces = _NUMBERS.split(part)
    return [(int(piece), "") if at % 2 else (0, piece) for at, piece in enumerate(pieces)]
