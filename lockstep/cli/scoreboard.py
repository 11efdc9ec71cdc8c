"""`lockstep faults score`: how good is the auditor? Every fault of the catalogue, many times, and clean runs."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson
from cyclopts import Parameter

from lockstep.cli.progress import ProgressBars
from lockstep.errors import InputError, message

if TYPE_CHECKING:
    from lockstep.harness.scoreboard import Case
    from lockstep.harness.scores import Scores


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
    from lockstep.harness.scores import Scores
    from lockstep.trace.durable import replace_file

    _require_runs(seeds, clean)
    scores = Scores(_cases(_known(code), seeds, clean, silent=json))
    if output is not None:
        replace_file(output, _page(scores).encode())
    if json:
        sys.stdout.write(orjson.dumps(scores.plain(), option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        where = f"; the matrix is in {output}" if output else ""
        verdict = f"below the bar: {', '.join(scores.missed)}" if scores.missed else "every bar is reached"
        print(scores.markdown())
        print(f"{len(scores.cases)} runs, {scores.false_alarms} false alarms, {verdict}{where}")
    return 1 if scores.missed else 0


def _page(scores: Scores) -> str:
    """The matrix as a page of its own: what was run, where, and all tables."""
    from lockstep.trace.manifest import machine, versions

    made, seconds = machine(), sum(case.seconds for case in scores.cases)
    software = ", ".join(f"{name} {value}" for name, value in versions().items() if name in ("lockstep-rl", "torch"))
    where = f"{made['cores']} cores of {made['cpu']}, {software}"
    what = f"{len(scores.cases)} runs in {seconds / 60:.0f} minutes on {where}"
    return f"# The scoreboard, in numbers\n\nMade by `lockstep faults score`: {what}.\n\n{scores.markdown()}"


def _require_runs(seeds: int, clean: int) -> None:
    """Raise `InputError` for negative counts, and for no run at all, which would miss no bar."""
    if min(seeds, clean) < 0 or seeds + clean == 0:
        expected, do = "0 or more of each, and at least one", "Leave them out for the defaults"
        got = f"--seeds {seeds} --clean {clean}"
        raise InputError(message("runs (--seeds, --clean)", "there must be a run", got=got, expected=expected, do=do))


def _known(codes: Sequence[str]) -> list[str]:
    """The faults that are meant; all of them if none is named."""
    from lockstep.harness.faults import INJECTIONS

    named = [code.upper() for code in codes] or sorted(INJECTIONS)
    for one in named:
        if one not in INJECTIONS:
            do = "`lockstep faults` lists them"
            raise InputError(message(f"fault ({one})", "no such one", got=one, expected="a code, SEM01 say", do=do))
    return named


def _cases(codes: Sequence[str], seeds: int, clean: int, *, silent: bool) -> list[Case]:
    """Every run, with a bar."""
    import torch

    from lockstep.harness.networks import Networks
    from lockstep.harness.scoreboard import cases

    torch.set_num_threads(1)  # the networks are tiny
    found: list[Case] = []
    with tempfile.TemporaryDirectory() as folder, ProgressBars(silent=silent, unit="runs") as bars:
        for case in cases(Networks(Path(folder)), codes, range(seeds), range(clean)):
            found.append(case)
            bars.update("runs", len(found), len(codes) * seeds + clean)
    return found
