"""`python -m bench ROW`: hold a contest, write its result, say what came of it.

In: arguments. Out: bench/results/ROW.json. Exit codes: 0 written, 1 a contestant failed or did less than was asked,
2 a mistake in the arguments, or a peer that cannot be had on this machine.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from collections.abc import Sequence

import orjson

from bench.options import Options, announce
from lockstep.errors import LockstepError, StageError
from lockstep.kernels.threads import num_cores

ROWS = {"rollout": 5, "parity": 5, "train": 5, "learn": 3, "decode1": 5, "swap": 5, "growth": 3}
"""Each is a module of this folder with `run(options) -> Result`; how many rounds it has if nobody says."""


def main(arguments: Sequence[str]) -> int:
    """Run one row, or make the table (`table`); returns the exit code."""
    chosen = _parser().parse_args(arguments)
    if chosen.row == "table":
        from bench import table

        table.rewrite()
        return 0
    rounds = chosen.rounds or (1 if chosen.trial else ROWS[chosen.row])
    options = Options(chosen.model, rounds, chosen.threads or num_cores(), tuple(chosen.only), chosen.trial)
    try:
        found = importlib.import_module(f"bench.{chosen.row}").run(options)
        if options.trial or chosen.print:
            sys.stdout.write(orjson.dumps(found.tree(), option=orjson.OPT_INDENT_2).decode() + "\n")
        else:
            announce(f"written: {found.write().name}; `make bench-table` puts it into the README")
    except LockstepError as failure:
        announce(str(failure))
        return 1 if isinstance(failure, StageError) else failure.exit_code
    for line in found.comparisons:
        announce(f"{line.what}: {line.ratio:.2f}x {line.peer} ({line.low:.2f} to {line.high:.2f})")
    for figure in found.figures:
        announce(f"{figure.what}: {figure.median:.3g} {figure.unit} ({figure.low:.3g} to {figure.high:.3g})")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m bench", description="Ours and its peers side by side.")
    parser.add_argument("row", choices=(*ROWS, "table"))
    parser.add_argument("--model", default="smollm2", help="a name from `lockstep models list`, or an HF directory")
    parser.add_argument("--rounds", type=int, default=0, help="counted ones; those of `learn` are seeds")
    parser.add_argument("--threads", type=int, default=0, help="of everybody; 0: one a core")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="this peer (may be repeated)")
    parser.add_argument("--print", action="store_true", help="the result as JSON on stdout; none is written")
    parser.add_argument("--trial", action="store_true", help="a tiny amount of work, printed as above")
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that contestants are ended on the way out
    sys.exit(main(sys.argv[1:]))
