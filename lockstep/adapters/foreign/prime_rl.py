"""prime-rl's token exports: `trainer.enable_token_export`, ``token_exports/step_N/rank_R.jsonl``, a line a sequence.

In: lines of schema 1: `token_ids` and, aligned with them, `loss_mask`, `inference_logprobs`, `trainer_logprobs`,
`is_masked` and the weights of the loss's parts. Out: observations. `trainer_logprobs[t]` is already that of
`token_ids[t]`; both series are at the sampling temperature, which is not written. Null is a number that was not finite.
Tokens count as drawn by the policy where prime-rl itself counts a mismatch: in the loss, and in its rl or ref_kl part.
The trainer's series is of the weights that the step trains, which may be newer than those that sampled.

Source: PrimeIntellect-ai/prime-rl, src/prime_rl/trainer/rl/token_export.py and train.py at 559b447 (0.8.0, 2026-08-22);
e971d90 (2026-05-21, the first, all steps in one ``token_exports/rank_R.jsonl``) and 941019f have the same columns.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from lockstep.adapters.foreign.files import in_order
from lockstep.adapters.foreign.gaps import Gaps
from lockstep.adapters.foreign.lines import first_values, values
from lockstep.adapters.foreign.row import Row, has
from lockstep.adapters.foreign.run import ForeignRun, Format
from lockstep.adapters.foreign.turns import cut
from lockstep.parity.observation import Observation, Sample

SCHEMAS = (1,)
NOTES = {
    "mismatch": "the trainer's logprobs are of the weights that the step trains: where rollouts run ahead, the "
    "policy's update is in the difference, too"
}


def _opened(path: Path, files: Sequence[Path]) -> ForeignRun:
    ordered = in_order(files)
    schema = next((value["schema_version"] for value in first_values(ordered[0]) if _ours(value)), None)
    version = f"schema {schema}" if isinstance(schema, int) else None
    return ForeignRun(FORMAT.name, path, lambda gaps: _observations(ordered, gaps), version, NOTES)


def _observations(files: Sequence[Path], gaps: Gaps) -> Iterator[Observation]:
    """Ranks write side by side; the lines of a step are put together."""
    for _, members in groupby(files, key=lambda file: file.parent):
        lines = heapq.merge(*(_lines(file, gaps) for file in members), key=lambda pair: pair[0])
        for step, parts in groupby(lines, key=lambda pair: pair[0]):
            yield Observation(step, [sample for _, samples in parts for sample in samples])


def _lines(file: Path, gaps: Gaps) -> Iterator[tuple[int, list[Sample]]]:
    for found in values(file, gaps):
        row = Row.of(found.place, found.value)
        yield row.needed("step"), _samples(row)


def _samples(row: Row) -> list[Sample]:
    if row.integer("schema_version") not in SCHEMAS:
        raise row.wrong("schema_version", row.tree.get("schema_version"), " or ".join(map(str, SCHEMAS)))
    ids, mask = row.ids("token_ids"), row.flags("loss_mask")
    if ids is None or mask is None:
        raise row.wrong("token_ids" if ids is None else "loss_mask", "nothing", "a list")
    series = {"sampler": row.floats("inference_logprobs"), "trainer": row.floats("trainer_logprobs")}
    weights = {name: row.stated(name) for name in ("rl_weights", "ref_kl_weights")}
    masked = row.flags("is_masked")
    named = {"inference_logprobs": series["sampler"], "trainer_logprobs": series["trainer"], **weights}
    row.same_length({"token_ids": ids, "loss_mask": mask, "is_masked": masked, **named})
    counted = mask if masked is None else mask & ~masked
    names = (row.needed("step"), row.needed("rank"), row.needed("export_sequence_idx"))
    return cut("/".join(map(str, names)), ids, mask & _by_policy(weights, mask), {**series, "mask": counted})


def _by_policy(weights: dict[str, np.ndarray | None], mask: np.ndarray) -> np.ndarray:
    rl, ref_kl = weights["rl_weights"], weights["ref_kl_weights"]
    drawn = mask if rl is None else rl != 0
    return drawn if ref_kl is None else drawn | (ref_kl != 0)


def _ours(value: object) -> bool:
    return has(value, "schema_version", "token_ids", "loss_mask", "inference_logprobs")


FORMAT = Format(
    "prime-rl token exports",
    "prime-rl",
    "lines with schema_version, token_ids, loss_mask, inference_logprobs, trainer_logprobs (enable_token_export)",
    _opened,
    of_json=_ours,
)
