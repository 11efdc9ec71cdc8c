"""Prompts with known answers: built-in problems and files.

In: the `[task]` table of the configuration and the seed. Out: a `TaskSet`, and from it the tasks of each step.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from lockstep.config import TaskConfig
from lockstep.errors import InputError, message
from lockstep.tasks.addition import addition
from lockstep.tasks.files import SUFFIXES, files
from lockstep.tasks.reverse import reverse
from lockstep.tasks.task_set import TaskSet, batch_of

__all__ = ["TaskSet", "addition", "batch_of", "files", "load_tasks", "reverse"]

BUILT_IN = {"addition": addition, "reverse": reverse}


def load_tasks(config: TaskConfig, seed: int) -> TaskSet:
    """The tasks that `config.name` names: a built-in, a .jsonl or .parquet file, or a folder of them.

    A pure function of its arguments and the file's content. Raises `InputError` for an unknown name, an unreadable
    file, a row that is no task, or too few tasks to hold any out.
    """
    if config.name in BUILT_IN:
        return BUILT_IN[config.name](config, seed)
    # os.path: unlike pathlib it leaves an unknown ~user as it is, and calls an impossible path no folder.
    path = Path(os.path.expanduser(config.name))  # noqa: PTH111
    if config.name and (path.suffix.lower() in SUFFIXES or os.path.isdir(path)):  # noqa: PTH112
        return files(path, config, seed)
    near = difflib.get_close_matches(config.name, BUILT_IN, n=1)
    raise InputError(
        message(
            f"task ({config.name})",
            "no such task",
            got=config.name,
            expected=f"{', '.join(BUILT_IN)}, a {' or '.join(SUFFIXES)} file or a folder of them",
            do=f"Did you mean {near[0]}" if near else "Change task.name",
        )
    )
