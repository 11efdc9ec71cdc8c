"""PipelineRL's streams of texts: ``streams/actor/0/0/0.jsonl``, a line each group of rollouts (file backend).

In: lines that are lists of `TrainingText` (or one each, as `save_samples` writes them): `input_ids` and `labels` of
prompt and completion (-100: not predicted), `logprobs` and `ref_logprobs` of the completion, `reward`, `group_id`,
`metadata` with `model_version`, `rollout_index`, `step_index`. Out: observations, one a line, numbered from 1: a stream
knows no steps. `model_version` is the newest that had been propagated when the rollout began; later tokens may be of
later ones, so tokens have no version here. Null is a number that was not finite (orjson writes it so).

Source: ServiceNow/PipelineRL, pipelinerl/{rollouts,streams,actor,async_llm}.py, pipelinerl/finetune/data.py at 58d3934
(0.1.0, 2026-06-19).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lockstep.adapters.foreign.files import in_order
from lockstep.adapters.foreign.gaps import Gaps
from lockstep.adapters.foreign.lines import Found, values
from lockstep.adapters.foreign.row import Row, has
from lockstep.adapters.foreign.run import ForeignRun, Format
from lockstep.adapters.foreign.turns import NO_IDS
from lockstep.errors import InputError, message
from lockstep.parity.observation import Observation, Sample, Statement

NOT_PREDICTED = -100
NOTES = {
    "mismatch": "the trainer's logprobs of a step are not written, only their means are logged",
    "weights": "model_version is what had been propagated when a rollout began",
}


def _opened(path: Path, files: Sequence[Path]) -> ForeignRun:
    ordered = in_order(one_topic(path, files, "actor"))
    return ForeignRun(FORMAT.name, path, lambda gaps: _observations(ordered, gaps), notes=NOTES)


def one_topic(path: Path, files: Sequence[Path], wanted: str) -> list[Path]:
    """Files of one topic of ``streams/TOPIC/INSTANCE/PARTITION/SHARD.jsonl``: the only one, or `wanted`."""
    topics = {file: file.parents[2].name if len(file.parents) > 3 else "" for file in files}
    if len(set(topics.values())) == 1:
        return list(files)
    chosen = [file for file, topic in topics.items() if topic == wanted]
    if not chosen:
        raise InputError(
            message(
                str(path), "holds one stream", got=f"the topics {', '.join(sorted(set(topics.values())))}",
                expected="one", do="Give the folder of one topic",
            )
        )  # fmt: skip
    return chosen


def _observations(files: Sequence[Path], gaps: Gaps) -> Iterator[Observation]:
    number = 0
    for file in files:
        for found in values(file, gaps):
            number += 1
            rows = _texts(found)
            samples = [_sample(row, f"{number}/{at}") for at, row in enumerate(rows)]
            yield Observation(number, samples, engine=Statement("engine", number=_version(rows)))


def _texts(found: Found) -> list[Row]:
    if not isinstance(found.value, list):
        return [Row.of(found.place, found.value)]
    return [Row.of(found.place, value, f"[{at}].") for at, value in enumerate(found.value)]


def _version(rows: Sequence[Row]) -> int | None:
    """The version that all rollouts of a line say."""
    metadata = [row.row("metadata") for row in rows]
    said = {None if row is None else row.integer("model_version") for row in metadata}
    return said.pop() if len(said) == 1 else None


def _sample(row: Row, place: str) -> Sample:
    ids, labels = row.ids("input_ids"), row.ids("labels", NOT_PREDICTED)
    group = row.text("group_id") or ""
    metadata = row.row("metadata")
    said = {"group": group, "text": _text(row)}
    name = place if metadata is None else _name(metadata, group, place)
    if ids is None or not len(ids):
        return Sample(name, NO_IDS, NO_IDS, **said)
    if labels is None:
        raise row.wrong("labels", "nothing", "a label for each of input_ids")
    row.same_length({"input_ids": ids, "labels": labels})
    predicted = labels != NOT_PREDICTED
    first = int(predicted.argmax()) if predicted.any() else len(ids)
    drawn = np.where(predicted, labels, ids)[first:]
    series = {"sampler": row.floats("logprobs"), "reference": row.floats("ref_logprobs")}
    series = {field: None if v is None or not len(v) else v for field, v in series.items()}  # empty: not asked for
    moved = drawn if (drawn != ids[first:]).any() else None
    return Sample(name, ids[:first], ids[first:], **series, drawn_ids=moved, mask=predicted[first:], **said)


def _name(metadata: Row, group: str, place: str) -> str:
    """What tells a sample from all others of the stream."""
    numbers = [metadata.integer(column) for column in ("rollout_index", "step_index")]
    if not group or None in numbers:
        return place
    return f"{group}/{numbers[0]}/{numbers[1]}"


def _text(row: Row) -> str | None:
    """The last `n_predicted` characters."""
    text, count = row.text("text"), row.integer("n_predicted")
    if text is None or count is None or not 0 <= count <= len(text):
        return None
    return text[len(text) - count :]


def _ours(value: object) -> bool:
    first = value[0] if isinstance(value, list) and value else value
    return has(first, "text", "n_predicted", "logprobs", "input_ids", "labels")


FORMAT = Format(
    "PipelineRL texts",
    "PipelineRL",
    "lines of TrainingText: text, n_predicted, logprobs, input_ids, labels (streams/actor)",
    _opened,
    of_json=_ours,
)
