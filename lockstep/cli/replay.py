"""`lockstep replay RUN`: execute steps of a run once more, and compare every bit."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import orjson
from cyclopts import Parameter

from lockstep.cli.progress import ProgressBars
from lockstep.errors import InputError, message
from lockstep.trace.metrics import plain
from lockstep.trace.run import RunDirectory


def replay(
    run: Path,
    *,
    step: Annotated[tuple[str, ...], Parameter(name="--step", negative=())] = (),
    from_start: bool = False,
    rewards: bool = False,
    json: bool = False,
) -> int:
    """Execute steps of the run in the directory RUN again and compare tokens, logprobs and weights, bit for bit.

    Parameters
    ----------
    run
        A run directory. It is only read.
    step
        A step, or a range such as 10-20; may be given more than once. All steps if it is not given.
    from_start
        Begin with the initial model and its warm start, even where a checkpoint is nearer.
    rewards
        Grade the rollouts again, too, and say whether rewards and advantages are the same.
    json
        Print what was found as one JSON document, and nothing else.
    """
    asked = steps(step)
    directory = RunDirectory(run)
    directory.config_tree()  # a wrong directory is said before torch is loaded
    from lockstep.pipeline.replay import Options, Replayer

    with ProgressBars(silent=json) as bars:
        replayer = Replayer(directory, Options(from_start, rewards), bars.update)
    for note in replayer.notes:
        print(f"lockstep: warning: {note}", file=sys.stderr)
    with ProgressBars(silent=json, unit="steps") as bars:
        found = replayer.replay(asked, bars.update)
    for note in found.notes[len(replayer.notes) :]:
        print(f"lockstep: warning: {note}", file=sys.stderr)
    if json:
        sys.stdout.write(orjson.dumps(plain(found.plain()), option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        print(found.summary())
    return 0 if found.equal else 1


def steps(words: Sequence[str]) -> list[int]:
    """Numbers and ranges ``FIRST-LAST`` as steps. Raises `InputError` for anything else."""
    found: list[int] = []
    for word in words:
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            do = "Write --step 3, or --step 10-20"
            raise InputError(
                message("step", "a number, or a range from low to high", got=word, expected="3 or 10-20", do=do)
            )
        found += range(first, last + 1)
    return found
