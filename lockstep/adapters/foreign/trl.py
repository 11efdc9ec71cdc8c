"""TRL's tables of completions: `log_completions`, ``completions/completions_00010.parquet`` at every logged step.

In: Parquet with `step`, `prompt`, `completion`, a column for each reward function, those of `log_extra` (since 1.0) and
`advantage`. Out: observations. Texts only: TRL writes no ids and no logprobs, unless the user has passed them to
`log_extra` under the names they have inside of TRL (`completion_ids`, `sampling_per_token_logps`, ...). What
``trainer_state.json`` of the newest checkpoint logged for a step are its metrics. The table holds the last generated
batch, so with several optimizer steps a batch two files may hold the same rows: that is no batch served twice.

Source: huggingface/trl, trl/trainer/grpo_trainer.py, `log` at v0.28.0 (the first with the files), v1.0.0, v1.9.0 and
f2cd577 (1.10.0.dev, 2026-07-24); `log_history` of transformers' trainer_state.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lockstep.adapters.foreign.files import in_order, one_folder
from lockstep.adapters.foreign.gaps import Gaps
from lockstep.adapters.foreign.lines import values
from lockstep.adapters.foreign.row import Row
from lockstep.adapters.foreign.run import ForeignRun, Format
from lockstep.adapters.foreign.turns import Names, logged
from lockstep.errors import InputError, message
from lockstep.parity.observation import Observation
from lockstep.trace.rollout_schema import KEY

NAMES = Names(
    "prompt_ids", "completion_ids", "sampling_per_token_logps", "old_per_token_logps", "ref_per_token_logps",
    "completion_mask",
)  # fmt: skip
NOTES = {"mismatch": "sampling/sampling_logp_difference among TRL's metrics is the one figure there is of it"}
WANTED = ("step", "completion", *(getattr(NAMES, name) for name in Names.__dataclass_fields__))
ROWS = 512
"""Rows that are read at once."""


def _opened(path: Path, files: Sequence[Path]) -> ForeignRun:
    ordered = one_folder(path, files)
    return ForeignRun(FORMAT.name, path, lambda gaps: _observations(ordered, gaps), notes=NOTES)


def _observations(files: Sequence[Path], gaps: Gaps) -> Iterator[Observation]:
    metrics = _metrics(files[0].parent, gaps)
    for file in files:
        for step, rows in groupby(_rows(file), key=lambda row: row.needed("step")):
            samples = [
                sample
                for at, row in enumerate(rows)
                for sample in logged(row, NAMES, {"text": row.text("completion")}, f"{step}/{at}", gaps)
            ]
            yield Observation(step, samples, metrics=metrics.get(step, {}))


def _rows(file: Path) -> Iterator[Row]:
    """Rows with the columns that are wanted."""
    try:
        with pq.ParquetFile(file) as parquet:
            columns = [name for name in parquet.schema_arrow.names if name in WANTED]
            number = 0
            for batch in parquet.iter_batches(ROWS, columns=columns):
                for tree in batch.to_pylist():
                    number += 1
                    yield Row(f"{file} (row {number})", tree)
    except (OSError, ValueError, pa.ArrowException) as cause:
        rule, do = "must be whole Parquet", "Leave the file out, or write it again"
        raise InputError(message(str(file), rule, got=cause, expected="a readable file", do=do)) from cause


def _metrics(folder: Path, gaps: Gaps) -> Mapping[int, Mapping[str, float]]:
    """Numbers that the newest state of the trainer logged, by step; none if there is no state or it is damaged."""
    folder = folder.parent if folder.name == "completions" else folder
    states = [*in_order(list(folder.glob("checkpoint-*/trainer_state.json"))), folder / "trainer_state.json"]
    newest = next((file for file in reversed(states) if file.is_file()), None)
    if newest is None:
        return {}
    found: dict[int, dict[str, float]] = {}
    try:
        history = chain.from_iterable(
            Row.of(state.place, state.value).rows("log_history") or [] for state in values(newest, gaps)
        )
        for entry in history:
            numbers = {k: float(v) for k, v in entry.tree.items() if type(v) in (int, float) and k != "step"}
            found.setdefault(entry.needed("step"), {}).update(numbers)
    except InputError as damaged:
        gaps.add(f"no metrics: {damaged}")
        return {}
    return found


FORMAT = Format(
    "TRL completions",
    "TRL",
    "Parquet with step, prompt, completion, advantage (log_completions)",
    _opened,
    of_parquet=lambda names, metadata: (
        KEY not in metadata and {"step", "prompt", "completion", "advantage"} <= set(names)
    ),
)
