"""What a row found, as one JSON file: numbers, machine, versions, settings and the checks of sanity.

In: standings of a contest. Out: bench/results/ROW.json, whole or not at all.

A file holds `comparisons`, the lines of the README's table, beside everything that they were made from.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from bench.contest import Spread, Standing, ratios
from lockstep import __version__
from lockstep.errors import InputError, message
from lockstep.trace import manifest
from lockstep.trace.durable import replace_file

SCHEMA = 1
RESULTS = Path(__file__).with_name("results")
PATHS = ("model", "gguf")
"""Settings that say where something lies on one machine, and are not published."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A line of the table: ours against `peer`. `ratio` is how many times better ours is, from `low` to `high`.

    `ours` and `theirs` are medians in `unit`; None: not reached, and then `ratio` is a bound from below. `bar` is the
    ratio we set out for, if there is one.
    """

    what: str
    peer: str
    unit: str
    ours: float | None
    theirs: float | None
    ratio: float
    low: float
    high: float
    bar: float | None = None


@dataclass(frozen=True, slots=True)
class Figure:
    """A number of our own that is compared with nobody: the median of the rounds, and at most `bar` if we set out for
    one."""

    what: str
    unit: str
    median: float
    low: float
    high: float
    bar: float | None = None

    @classmethod
    def of(cls, what: str, unit: str, values: Sequence[float], bar: float | None = None) -> Figure:
        """Of one value a round."""
        spread = Spread.of(values)
        return cls(what, unit, spread.median, spread.low, spread.high, bar)


@dataclass(frozen=True, slots=True)
class Result:
    """All of a row. `contestants` maps names to versions, settings, every round's numbers and peak memory in GiB."""

    row: str
    settings: Mapping[str, Any]
    contestants: Mapping[str, Mapping[str, Any]]
    comparisons: Sequence[Comparison]
    sanity: Mapping[str, Any]
    notes: Sequence[str] = ()
    figures: Sequence[Figure] = ()

    def tree(self) -> dict[str, Any]:
        """Ready for JSON, with the machine, the date and our own version."""
        return {
            "schema": SCHEMA,
            "row": self.row,
            "date": dt.datetime.now(dt.UTC).date().isoformat(),
            "lockstep": {"version": __version__, "code": manifest.code_digest()},
            "machine": manifest.machine(),
            "settings": dict(self.settings),
            "contestants": dict(self.contestants),
            "comparisons": [asdict(comparison) for comparison in self.comparisons],
            "figures": [asdict(figure) for figure in self.figures],
            "sanity": dict(self.sanity),
            "notes": list(self.notes),
        }

    def write(self, folder: Path = RESULTS) -> Path:
        """Write `folder/ROW.json`, replacing an older one. Raises `StorageError`."""
        file = folder / f"{self.row}.json"
        replace_file(file, orjson.dumps(self.tree(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
        return file


@dataclass(frozen=True, slots=True)
class Line:
    """How a contest becomes comparisons: what is measured, its unit, and how many of it a second's worth is made of.

    `amount` 0: the number is seconds itself, and less is better.
    """

    what: str
    unit: str
    amount: float = 0.0

    def value(self, seconds: float) -> float:
        return self.amount / seconds if self.amount else seconds


def comparisons(
    line: Line, standings: Mapping[str, Standing], ours: str, bars: Mapping[str, float]
) -> list[Comparison]:
    """Ours against each of the others, in their order."""
    middle = {name: line.value(Spread.of(standing.seconds).median) for name, standing in standings.items()}
    found = []
    for peer, standing in standings.items():
        if peer != ours:
            ratio, bar = Spread.of(ratios(standing, standings[ours])), bars.get(peer)
            sides = (middle[ours], middle[peer])
            found.append(Comparison(line.what, peer, line.unit, *sides, ratio.median, ratio.low, ratio.high, bar))
    return found


def record(standing: Standing) -> dict[str, Any]:
    """What is kept of a contestant: no tokens, but every round's seconds, the warm-up apart."""
    spread = Spread.of(standing.seconds)
    settings = {key: value for key, value in standing.program.settings.items() if key not in PATHS}
    return {
        "versions": standing.versions,
        "settings": settings,
        "variables": {key: _places(key, value) for key, value in standing.program.variables.items()},
        "warm_up_seconds": standing.answers[0]["seconds"],
        "seconds": standing.seconds,
        "median_seconds": spread.median,
        "lowest_seconds": spread.low,
        "highest_seconds": spread.high,
        "peak_gib": standing.peak_gib,
    }


def _places(name: str, value: str) -> str:
    """A variable's value; of libraries to preload their names alone, without the place on one machine."""
    return ":".join(Path(one).name for one in value.split(":")) if name == "LD_PRELOAD" else value


def read(file: Path) -> dict[str, Any]:
    """The tree of a result. Raises `InputError` if it is none."""
    try:
        tree = orjson.loads(file.read_bytes())
        if tree["schema"] == SCHEMA and isinstance(tree["comparisons"], list):
            return tree
        cause: object = f"schema {tree['schema']}"
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError) as failure:
        cause = failure
    rule, do = "it must be whole", "Run `make bench-ROW` again"
    raise InputError(message(f"result ({file.name})", rule, got=cause, expected=f"schema {SCHEMA}", do=do))
