"""Words to be written backwards, for models that know only characters.

In: the length of a word and the size of the alphabet. Out: `abcd>` -> `dcba`, split.
"""

from __future__ import annotations

import itertools
from string import ascii_lowercase

import numpy as np

from lockstep.config import TaskConfig
from lockstep.core import Task
from lockstep.errors import InputError, message
from lockstep.numerics import request_key
from lockstep.tasks.task_set import TaskSet, split

MAX_WORDS = 10_000
MAX_LENGTH = 256


def reverse(config: TaskConfig, seed: int) -> TaskSet:
    """Every word of `config.length` letters from the first `config.letters`; a seeded draw of at most `MAX_WORDS`
    where there are more. Raises `InputError` for words longer than `MAX_LENGTH`."""
    if config.length > MAX_LENGTH:
        do = "Change task.length"
        raise InputError(
            message("task (reverse)", "words are short", got=config.length, expected=f"at most {MAX_LENGTH}", do=do)
        )
    alphabet = ascii_lowercase[: config.letters]
    if config.letters**config.length <= MAX_WORDS:
        words = ["".join(letters) for letters in itertools.product(alphabet, repeat=config.length)]
        origin = "all"
    else:
        words = _drawn(alphabet, config.length, seed)
        origin = f"{len(words)} drawn"
    tasks = [Task(f"reverse/{word}", f"{word}>", word[::-1]) for word in words]
    train, held_out = split("reverse", tasks, config.held_out, seed)
    return TaskSet(train, held_out, "exact", f"built-in: {origin} words of {config.length} letters from {alphabet}")


def _drawn(alphabet: str, length: int, seed: int) -> list[str]:
    """Up to `MAX_WORDS` distinct words, in the order of the draw."""
    raw = np.random.Philox(key=request_key(seed, "tasks/reverse", 0)).random_raw(MAX_WORDS * length)
    picks = (raw % np.uint64(len(alphabet))).reshape(MAX_WORDS, length)
    return list(dict.fromkeys("".join(alphabet[i] for i in row) for row in picks.tolist()))
