"""A run of somebody else's, as it lies on disk, and the formats that such runs have.

In: files that a reader understands. Out: `ForeignRun`: observations one step at a time, and what they allow.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from lockstep.adapters.foreign.coverage import Coverage
from lockstep.adapters.foreign.gaps import Gaps
from lockstep.adapters.foreign.permission import Permission, permissions
from lockstep.parity.observation import Observation

Reader = Callable[[Gaps], Iterator[Observation]]


@dataclass(frozen=True, slots=True, eq=False)
class ForeignRun:
    """`name` is the format's, `version` what the files say of the program that wrote them (None: nothing).

    `notes`: what the format itself means for a kind of probe. `exact`: both sides were one computation, so that any
    differing bit is a mismatch. `left_out`: what else lies there and is not read, `damaged` of it because it cannot be;
    `gaps` fill as observations are read.
    """

    name: str
    path: Path
    reader: Reader
    version: str | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    exact: bool = False
    left_out: tuple[str, ...] = ()
    damaged: int = 0
    gaps: Gaps = field(default_factory=Gaps)

    def observations(self) -> Iterator[Observation]:
        """One a step, read as they are asked for. Raises `InputError` where a file is damaged."""
        self.gaps.clear()
        return self.reader(self.gaps)

    @property
    def allows(self) -> dict[str, Permission]:
        """By kind of probe, as the first step has it. Reads that step."""
        coverage = Coverage()
        for observation in islice(self.reader(Gaps()), 1):
            coverage.add(observation)
        return permissions(coverage, self.notes)


@dataclass(frozen=True, slots=True, eq=False)
class Format:
    """What one program leaves on disk. `what` says it in words; those of one `framework` are ordered by preference.

    `of_json` recognises a value of JSON, `of_parquet` the names of columns with the file's metadata; `opened` makes a
    run of the path that was given and the files in it that were recognised, in order.
    """

    name: str
    framework: str
    what: str
    opened: Callable[[Path, Sequence[Path]], ForeignRun]
    of_json: Callable[[object], bool] | None = None
    of_parquet: Callable[[Collection[str], Mapping[bytes, bytes]], bool] | None = None
