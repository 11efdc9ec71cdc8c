"""Whole token sequences cut into samples: each run of drawn tokens is one, and its prompt is all that stood before it.

In: ids of a sequence, which of them were drawn, series aligned with it. Out: `Sample`s. So what tools and templates put
between two answers is compared with nothing.

Letters: L tokens of a sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lockstep.adapters.foreign.gaps import Gaps
from lockstep.adapters.foreign.row import Row
from lockstep.parity.observation import Sample

NO_IDS = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class Names:
    """Columns that a user may have added to a log of texts, under the names that they have inside the framework."""

    prompt: str
    tokens: str
    sampler: str
    trainer: str
    reference: str
    mask: str


def cut(
    identity: str,
    ids_L: np.ndarray,
    drawn_L: np.ndarray,
    series: Mapping[str, np.ndarray | None],
    said: Mapping[str, Any] | None = None,
) -> list[Sample]:
    """One sample for each run of True in `drawn_L`; `series` are fields of `Sample`, each [L]; `said` other fields."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], drawn_L, [False])).astype(np.int8))).reshape(-1, 2)
    samples = []
    for turn, (start, end) in enumerate(edges.tolist()):
        pieces = {name: None if values is None else values[start:end] for name, values in series.items()}
        name = identity if len(edges) == 1 else f"{identity}/turn {turn}"
        samples.append(Sample(name, ids_L[:start], ids_L[start:end], **pieces, **(said or {})))
    return samples


def logged(row: Row, names: Names, said: Mapping[str, Any], identity: str, gaps: Gaps) -> list[Sample]:
    """Samples of a row of a log of texts: of the tokens if they were added to it, else of the text alone."""
    tokens, mask = row.ids(names.tokens), row.flags(names.mask)
    series = {field: row.floats(getattr(names, field)) for field in ("sampler", "trainer", "reference")}
    if tokens is None:
        if any(values is not None for values in series.values()):
            gaps.add(f"{row.place}: logprobs without {names.tokens} belong to no tokens, they are left out")
        return [Sample(identity, NO_IDS, NO_IDS, **said)]
    prompt = row.ids(names.prompt)
    prompt = NO_IDS if prompt is None else prompt
    if mask is None:
        return [Sample(identity, prompt, tokens, **series, **said)]
    row.same_length({names.tokens: tokens, names.mask: mask, **{getattr(names, k): v for k, v in series.items()}})
    before = np.full(len(prompt), np.nan, np.float32)
    aligned = {name: None if v is None else np.concatenate((before, v)) for name, v in series.items()}
    drawn = np.concatenate((np.zeros(len(prompt), bool), mask))
    return cut(identity, np.concatenate((prompt, tokens)), drawn, aligned, said)
