"""PipelineRL's streams of micro batches: ``streams/training_data/0/R/0.jsonl``, what the preprocessor hands to rank R.

In: lines that are a `PipelineBatchEncoding`: `input_ids`, `labels`, `old_logprobs` (the sampler's), `ref_logprobs`, all
[1, L] packed with `seq_boundaries`, or [B, L] padded with `attention_mask`. Out: observations, one a line, numbered
from 1. Both series stand at the position of their token; before a completion they are 0. Lines that are `sentinel`s
carry no sample, nor does padding, of which nothing is predicted. A line that is a slice for sequence parallelism is
refused: its sequences begin in another file. `model_version` is the oldest of the batch; if no reference model was
asked, `ref_logprobs` are the sampler's once more.

Source: ServiceNow/PipelineRL, pipelinerl/finetune/{types,data,utils}.py, pipelinerl/preprocess.py at 58d3934 (0.1.0,
2026-06-19).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lockstep.adapters.foreign.files import in_order
from lockstep.adapters.foreign.gaps import Gaps
from lockstep.adapters.foreign.lines import values
from lockstep.adapters.foreign.pipeline_rl import NOT_PREDICTED, NOTES, one_topic
from lockstep.adapters.foreign.row import Row, has
from lockstep.adapters.foreign.run import ForeignRun, Format
from lockstep.adapters.foreign.turns import cut
from lockstep.parity.observation import Observation, Sample

ALIGNED = ("input_ids", "labels", "attention_mask", "old_logprobs", "ref_logprobs")
OLDEST = {**NOTES, "weights": "model_version is the oldest of a batch, so no sample has one"}


def _opened(path: Path, files: Sequence[Path]) -> ForeignRun:
    ordered = in_order(one_topic(path, files, "training_data"))
    return ForeignRun(FORMAT.name, path, lambda gaps: _observations(ordered, gaps), notes=OLDEST)


def _observations(files: Sequence[Path], gaps: Gaps) -> Iterator[Observation]:
    number = 0
    for file in files:
        for found in values(file, gaps):
            row = Row.of(found.place, found.value)
            if row.flag("sentinel"):
                continue
            number += 1
            yield Observation(number, _samples(row, number))


def _samples(row: Row, number: int) -> list[Sample]:
    lines = [_line(row, at) for at in range(_count(row))]
    if row.flag("is_packed"):
        if len(lines) != 1:
            raise row.wrong("input_ids", f"{len(lines)} lists", "one list, as the batch is packed")
        pieces = _packed(row, lines[0])
    else:
        pieces = [{name: v[line["attention_mask"].astype(bool)] for name, v in line.items()} for line in lines]
    return [sample for at, piece in enumerate(pieces) for sample in _sequence(piece, f"{number}/{at}")]


def _count(row: Row) -> int:
    ids = row.tree.get("input_ids")
    if not isinstance(ids, list):
        raise row.wrong("input_ids", "no list", "a list of lists")
    return len(ids)


def _line(row: Row, at: int) -> dict[str, np.ndarray]:
    """The columns of one line of the batch, all of one length."""
    tree = {}
    for name in ALIGNED:
        value = row.tree.get(name)
        if not isinstance(value, list) or len(value) != _count(row):
            raise row.wrong(name, "not as many lists as input_ids", "a list of lists, one for each of input_ids")
        tree[f"{name}[{at}]"] = value[at]
    inner = Row(row.place, tree, row.within)
    ids, labels = inner.ids(f"input_ids[{at}]"), inner.ids(f"labels[{at}]", NOT_PREDICTED)
    mask = inner.flags(f"attention_mask[{at}]")
    series = {name: inner.floats(f"{name}[{at}]") for name in ALIGNED[3:]}
    columns = {"input_ids": ids, "labels": labels, "attention_mask": mask, **series}
    missing = next((name for name, values in columns.items() if values is None), None)
    if missing is not None:
        raise inner.wrong(f"{missing}[{at}]", "null", "a list")
    inner.same_length({f"{name}[{at}]": values for name, values in columns.items()})
    return {name: values for name, values in columns.items() if values is not None}


def _packed(row: Row, line: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    edges, length = row.ids("seq_boundaries"), len(line["input_ids"])
    if edges is None or len(edges) < 2 or edges[0] or edges[-1] != length or (np.diff(edges) < 0).any():
        got = None if edges is None else edges.tolist()[:8]
        raise row.wrong("seq_boundaries", got, f"ascending numbers from 0 to {length}, the tokens of the whole batch")
    pairs = zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    return [{name: values[a:b] for name, values in line.items()} for a, b in pairs]


def _sequence(piece: dict[str, np.ndarray], name: str) -> list[Sample]:
    ids, labels = piece["input_ids"], piece["labels"]
    predicted = labels != NOT_PREDICTED
    series = {"sampler": piece["old_logprobs"], "reference": piece["ref_logprobs"], "drawn_ids": labels}
    samples = cut(name, ids, predicted, series)
    return [s if (s.drawn_ids != s.token_ids).any() else replace(s, drawn_ids=None) for s in samples]


FORMAT = Format(
    "PipelineRL micro batches",
    "PipelineRL",
    "lines of PipelineBatchEncoding: input_ids, labels, old_logprobs, ref_logprobs (streams/training_data)",
    _opened,
    of_json=lambda value: has(value, *ALIGNED, "model_version"),
)
