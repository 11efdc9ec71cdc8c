"""How a row is run: the options of the command line, and what every row needs of its surroundings.

In: arguments. Out: `Options`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import environment
from lockstep.adapters.engines.process import Program
from lockstep.config import cache_dir
from lockstep.errors import InputError, message

OURS = "lockstep"


@dataclass(frozen=True, slots=True)
class Options:
    """`rounds` counted ones; `threads` of everybody; `only` these contestants and ours (empty: all); `trial`: a tiny
    amount of work, to see that everybody starts and plays fair - no result is written."""

    model: str = "smollm2"
    rounds: int = 5
    threads: int = 1
    only: tuple[str, ...] = ()
    trial: bool = False

    def logs(self, row: str) -> Path:
        """Where the words of a row's contestants are kept."""
        return cache_dir() / "bench" / "logs" / row

    def variables(self) -> dict[str, str]:
        """Environment variables of everybody: one size of thread pool, no hub."""
        return {"OMP_NUM_THREADS": str(self.threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

    def chosen(self, names: Sequence[str], others: Sequence[str] = ()) -> list[str]:
        """The contestants of a row that take part, ours first; `others` only if they are named.

        Raises `InputError` for a name that the row lacks.
        """
        names = [*names, *(other for other in others if other in self.only)]
        for name in self.only:
            if name not in names:
                do = "Drop it from --only"
                expected = ", ".join((*names, *others))
                raise InputError(message(f"contestant ({name})", "no such one", got=name, expected=expected, do=do))
        return [name for name in names if not self.only or name in self.only or name == OURS]


def announce(text: str) -> None:
    """Say on standard error what is going on."""
    sys.stderr.write(f"bench: {text}\n")
    sys.stderr.flush()


def program(
    name: str, script: str, peer: str | None, settings: Mapping[str, object], variables: Mapping[str, str]
) -> Program:
    """Who takes part under `name`: `bench/peers/{script}.py` in the environment of `peer` (None: this very one)."""
    python = environment.python_of(peer, announce) if peer else Path(sys.executable)
    return Program(name, python, environment.PEERS / f"{script}.py", settings, variables)
