"""Tasks from a file, or from a folder of files as Hugging Face datasets are laid out.

In: a path. Out: a `TaskSet` that says which mapping, check and split were taken.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from lockstep.config import TaskConfig
from lockstep.core import Task
from lockstep.errors import InputError, message
from lockstep.tasks.mapping import tasks_of
from lockstep.tasks.reader import SUFFIXES, read
from lockstep.tasks.task_set import TaskSet, prompt_key, split

SPLITS = {
    "train": "train", "training": "train",
    "test": "test", "eval": "test", "evaluation": "test",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
}  # fmt: skip

_INTEGER = re.compile(r"\s*[-+\N{MINUS SIGN}]?\d(?:\d|,\d{3})*(?:\.0+)?\s*")


def files(path: Path, config: TaskConfig, seed: int) -> TaskSet:
    """The tasks at `path`: one file, split by `config.held_out`; or a folder whose own test (else validation) split is
    held out, if it has one.

    Answers that all are integers are judged by `last_integer`, others by `exact`. Raises `InputError`.
    """
    parts = _by_split(path) if os.path.isdir(path) else {"train": [path]}  # noqa: PTH112
    held_name = next((name for name in ("test", "validation") if name in parts), None)
    whole = held_name is None or "train" not in parts
    trained = [file for group in parts.values() for file in group] if whole else parts["train"]
    tasks, mapping = _load(trained, path)
    if whole or held_name is None:
        train, held_out = split(path.name, tasks, config.held_out, seed)
        note = f"held out {len(held_out)} of {len(tasks)} by seed {seed}"
    else:
        own, _ = _load(parts[held_name], path)
        train, held_out, note = _own_split(path, tasks, own, held_name)
    check = _check(path, [*train, *held_out], answers_needed=not config.reward)
    return TaskSet(train, held_out, check, f"{path.name}: {mapping}; check {check}; {note}")


def _load(paths: Sequence[Path], root: Path) -> tuple[list[Task], str]:
    rows = [row for path in paths for row in read(path, path.name if path == root else str(path.relative_to(root)))]
    if not rows:
        raise InputError(
            message(
                f"task file ({root})", "a file holds prompts", got="no rows", expected="at least 2", do="Add prompts"
            )
        )
    return tasks_of(rows)


def _by_split(folder: Path) -> dict[str, list[Path]]:
    """The files of each split, recognised by a word in their path; files without one are `train`."""
    groups: dict[str, list[Path]] = {}
    layouts = set()
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.suffix.lower() not in SUFFIXES or any(part.startswith(".") for part in relative.parts):
            continue
        words = [word for word in re.split(r"[^a-z]+", str(relative).lower()) if word in SPLITS]
        groups.setdefault(SPLITS[words[-1]] if words else "train", []).append(path)
        layouts.add("/".join(part for part in relative.parent.parts if part.lower() not in SPLITS))
    got = f"the folders {', '.join(sorted(layouts))}" if layouts else "no such file"
    if len(layouts) != 1:
        raise InputError(
            message(
                f"task folder ({folder})",
                "one data set is taken",
                got=got,
                expected=f"{' or '.join(SUFFIXES)} files of one data set",
                do="Give the folder of one data set",
            )
        )
    return groups


def _own_split(
    path: Path, tasks: Sequence[Task], own: Sequence[Task], name: str
) -> tuple[tuple[Task, ...], tuple[Task, ...], str]:
    """The folder's own split, without the training tasks whose prompts it also holds out."""
    seen = {prompt_key(task) for task in own}
    train = tuple(task for task in tasks if prompt_key(task) not in seen)
    if not train:
        raise InputError(
            message(
                f"task folder ({path})",
                "some problems are trained on, some held out",
                got=f"every training prompt is in the {name} split too",
                expected="a training prompt that is not held out",
                do="Give other splits",
            )
        )
    left_out = len(tasks) - len(train)
    note = f"held out the {name} split" + (f", {left_out} of its prompts left out of training" if left_out else "")
    return train, tuple(own), note


def _check(path: Path, tasks: Sequence[Task], *, answers_needed: bool) -> str:
    answers = [task.answer for task in tasks if task.answer is not None]
    if answers_needed and not answers:
        raise InputError(
            message(
                f"task file ({path})",
                "a prompt without an answer needs a reward function",
                got="no answers and no task.reward",
                expected="a column answer or ground_truth, or task.reward",
                do="Add answers, or name a function in task.reward",
            )
        )
    return "last_integer" if answers and all(_INTEGER.fullmatch(answer) for answer in answers) else "exact"
