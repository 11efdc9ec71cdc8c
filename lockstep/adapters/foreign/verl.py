"""verl's rollout JSONL: `trainer.rollout_data_dir` (and `validation_data_dir`), a file ``STEP.jsonl`` each step.

In: lines with `input`, `output`, `score`, `step`, since 0.6 `gts`, and columns of the reward function or `request_id`;
the trainer of 0.9 (v1) adds `uid`, which reads ``SAMPLE_ROLLOUT_OUTPUT``: the answers to one prompt share SAMPLE. Out:
observations. Prompts and responses are texts without special tokens: `_dump_generations` of no release looked at writes
ids or logprobs, so only what a user has added under verl's own names (`responses`, `rollout_log_probs`,
`old_log_probs`, ...) can be compared.

Source: volcengine/verl, verl/trainer/ppo/ray_trainer.py at v0.4.1, v0.5.0, v0.6.0, v0.9.0;
verl/trainer/ppo/v1/trainer_base.py at v0.9.0 and 1dda039 (0.10.0.dev, 2026-08-22).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from lockstep.adapters.foreign.files import one_folder
from lockstep.adapters.foreign.gaps import Gaps
from lockstep.adapters.foreign.lines import values
from lockstep.adapters.foreign.row import Row, has
from lockstep.adapters.foreign.run import ForeignRun, Format
from lockstep.adapters.foreign.turns import Names, logged
from lockstep.parity.observation import Observation, Sample

NAMES = Names("prompts", "responses", "rollout_log_probs", "old_log_probs", "ref_log_prob", "response_mask")
NOTES = {"mismatch": "verl keeps ids and rollout_log_probs in memory, the dump holds what is in its columns"}


def _opened(path: Path, files: Sequence[Path]) -> ForeignRun:
    ordered = one_folder(path, files)
    return ForeignRun(FORMAT.name, path, lambda gaps: _observations(ordered, gaps), notes=NOTES)


def _observations(files: Sequence[Path], gaps: Gaps) -> Iterator[Observation]:
    for file in files:
        rows = (Row.of(found.place, found.value) for found in values(file, gaps))
        for step, members in groupby(((row.needed("step"), row) for row in rows), key=lambda pair: pair[0]):
            samples = [s for at, (_, row) in enumerate(members) for s in _samples(row, f"{step}/{at}", gaps)]
            yield Observation(step, samples)


def _samples(row: Row, place: str, gaps: Gaps) -> list[Sample]:
    group, identity = row.text("uid") or "", row.text("request_id")
    parts = group.rsplit("_", 2)
    if len(parts) == 3 and parts[1].isdecimal() and parts[2].isdecimal():
        group, identity = parts[0], group
    return logged(row, NAMES, {"group": group, "text": row.text("output")}, identity or place, gaps)


FORMAT = Format(
    "verl rollouts",
    "verl",
    "lines with input, output, score, step (trainer.rollout_data_dir)",
    _opened,
    of_json=lambda value: has(value, "input", "output", "score", "step"),
)
