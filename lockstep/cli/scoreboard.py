"""`lockstep faults score`: how good is the auditor? Every fault of the catalogue, many times, and clean runs."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import orjson
from cyclopts import Parameter

from lockstep.cli.progress import ProgressBars
from lockstep.errors import InputError, message

BARS = {"hard": 1.0, "soft": 0.95, "layer": 0.95, "cause": 0.90}
"""What the auditor is held to, as fractions; and no false alarm."""


def score(
    *,
    seeds: int = 5,
    clean: int = 200,
    code: Annotated[tuple[str, ...], Parameter(name="--code", negative=())] = (),
    output: Path | None = None,
    json: bool = False,
) -> int:
    """Put faults into small real trainings, let the auditor watch, and count what it says. Exit code 1 below a bar.

    Parameters
    ----------
    seeds
        Runs of each fault.
    clean
        Runs without a fault.
    code
        Only this fault (may be given more than once); all of the catalogue if it is not given.
    output
        Where to write the matrix as Markdown.
    json
        Print the scores as one JSON document, and nothing else.
    """
    import torch

    from lockstep.harness.faults import INJECTIONS
    from lockstep.harness.networks import Networks
    from lockstep.harness.scoreboard import cases
    from lockstep.harness.scores import Scores
    from lockstep.trace.durable import replace_file

    codes = [one.upper() for one in code] or sorted(INJECTIONS)
    for one in codes:
        if one not in INJECTIONS:
            do = "`lockstep faults` lists them"
            raise InputError(message(f"fault ({one})", "no such one", got=one, expected="a code, SEM01 say", do=do))
    torch.set_num_threads(1)  # the networks are tiny
    found = []
    total = len(codes) * seeds + clean
    with tempfile.TemporaryDirectory() as folder, ProgressBars(silent=json, unit="runs") as bars:
        for case in cases(Networks(Path(folder)), codes, range(seeds), range(clean)):
            found.append(case)
            bars.update("runs", len(found), total)
    scores = Scores(found)
    if output is not None:
        replace_file(output, scores.markdown().encode())
    if json:
        sys.stdout.write(orjson.dumps(scores.plain(), option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        print(scores.markdown())
    reached = dict(
        zip(BARS, (scores.hard_at_once, scores.soft_in_time, scores.right_layer, scores.right_cause), strict=True)
    )
    missed = [name for name, bar in BARS.items() if reached[name] < bar]
    if not json:
        where = f"; the matrix is in {output}" if output else ""
        verdict = f"below the bar: {', '.join(missed)}" if missed else "every bar is reached"
        print(f"{len(found)} runs, {scores.false_alarms} false alarms, {verdict}{where}")
    return 1 if missed or scores.false_alarms else 0
