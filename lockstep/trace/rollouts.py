"""Rollouts as Parquet: everything a step was trained on, bit for bit, one row a completion.

In: `RolloutRecord`s. Out: a zstd Parquet file that reads back to equal records, and that any Parquet tool can open.
docs/run-directory.md lists the columns; `SCHEMA` is their definition. Parquet's dictionaries are off: they compare
floats as numbers, and here the bits count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lockstep.core import Contract, Logprobs, Provenance, Reward, Rollout, SamplingParams, Support, Verdict
from lockstep.errors import InputError, message
from lockstep.trace.durable import replacing

VERSION = b"1"
_KEY = b"lockstep.rollouts"

_PARAMS = pa.struct(
    [
        ("temperature", pa.float64()),
        ("top_k", pa.int64()),
        ("top_p", pa.float64()),
        ("min_p", pa.float64()),
        ("max_tokens", pa.int64()),
        ("n", pa.int64()),
        ("seed", pa.uint64()),
        ("stop", pa.list_(pa.string())),
        ("stop_token_ids", pa.list_(pa.int64())),
        ("ignore_eos", pa.bool_()),
    ]
)
_CONTRACT = pa.struct(
    [
        ("mode", pa.string()),
        ("temperature", pa.float64()),
        ("support", pa.string()),
        ("head_dtype", pa.string()),
        ("weight_versions", pa.list_(pa.int64())),
    ]
)
_VERDICT = pa.struct(
    [
        ("status", pa.string()),
        ("code", pa.string()),
        ("check", pa.string()),
        ("witness", pa.string()),
        ("span", pa.list_(pa.int64())),
        ("seconds", pa.float64()),
    ]
)
SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("rollout_id", pa.string()),
        ("task_id", pa.string()),
        ("prompt", pa.string()),
        ("completion", pa.string()),
        ("finish_reason", pa.string()),
        ("reward", pa.float64()),
        ("reward_parts", pa.map_(pa.string(), pa.float64())),
        ("advantage", pa.float64()),
        ("verdict", _VERDICT),
        ("prompt_ids", pa.list_(pa.int32())),
        ("token_ids", pa.list_(pa.int32())),
        ("sampler_logprobs", pa.list_(pa.float32())),
        ("sampler_contract", _CONTRACT),
        ("trainer_logprobs", pa.list_(pa.float32())),
        ("trainer_contract", _CONTRACT),
        ("weight_version", pa.list_(pa.int32())),
        ("path", pa.list_(pa.uint8())),
        ("cached", pa.list_(pa.bool_())),
        ("support_ids", pa.list_(pa.int32())),
        ("support_offsets", pa.list_(pa.int64())),
        ("params", _PARAMS),
    ],
    metadata={_KEY: VERSION},
)


@dataclass(frozen=True, slots=True, eq=False)
class RolloutRecord:
    """A rollout with all that was decided about it. None: that stage did not get to it (or was undecided)."""

    step: int
    rollout: Rollout
    prompt: str  # the text whose tokens are rollout.prompt_ids
    reward: Reward | None = None
    advantage: float | None = None
    trainer_logprobs: Logprobs | None = None
    verdict: Verdict | None = None


def write(path: Path, records: Sequence[RolloutRecord]) -> None:
    """Write `path` atomically. Raises `StorageError`; text that is not Unicode (lone surrogates) is stored with `?`."""
    columns = {name: _encode(name, records, column) for name, column in _COLUMNS.items()}
    table = pa.Table.from_pydict(columns, schema=SCHEMA)
    with replacing(path) as file:
        pq.write_table(table, file, compression="zstd", use_dictionary=False)


def read(path: Path) -> list[RolloutRecord]:
    """The records of `path`, equal to those written; arrays are read-only. Raises `InputError` for any other file."""
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
    except (OSError, pa.ArrowException) as cause:
        raise _not_rollouts(path, cause) from cause
    metadata = table.schema.metadata or {}
    if metadata.get(_KEY) != VERSION or not table.schema.equals(SCHEMA):
        raise _not_rollouts(path, f"schema {metadata.get(_KEY, b'unknown').decode('ascii', 'replace')}")
    ragged = {name for name in SCHEMA.names if pa.types.is_list(SCHEMA.field(name).type)}
    columns = {name: _arrays(table[name]) if name in ragged else table[name].to_pylist() for name in SCHEMA.names}
    return [_record({name: column[row] for name, column in columns.items()}) for row in range(table.num_rows)]


def _not_rollouts(path: Path, got: object) -> InputError:
    rule, expected = "must be a rollout file", f"Parquet with lockstep.rollouts {VERSION.decode()}"
    do = "Give a file of a run's rollouts/ directory, and read it with the version that wrote it"
    return InputError(message(f"rollouts ({path})", rule, got=got, expected=expected, do=do))


_COLUMNS: dict[str, Callable[[RolloutRecord], Any]] = {
    "step": lambda r: r.step,
    "rollout_id": lambda r: _text(r.rollout.id),
    "task_id": lambda r: _text(r.rollout.task_id),
    "prompt": lambda r: _text(r.prompt),
    "completion": lambda r: _text(r.rollout.text),
    "finish_reason": lambda r: r.rollout.finish_reason,
    "reward": lambda r: r.reward.value if r.reward is not None else None,
    "reward_parts": lambda r: [(_text(k), v) for k, v in r.reward.parts.items()] if r.reward is not None else None,
    "advantage": lambda r: r.advantage,
    "verdict": lambda r: _verdict_row(r.verdict),
    "prompt_ids": lambda r: r.rollout.prompt_ids,
    "token_ids": lambda r: r.rollout.token_ids,
    "sampler_logprobs": lambda r: r.rollout.sampler_logprobs.values,
    "sampler_contract": lambda r: asdict(r.rollout.sampler_logprobs.contract),
    "trainer_logprobs": lambda r: r.trainer_logprobs.values if r.trainer_logprobs is not None else None,
    "trainer_contract": lambda r: asdict(r.trainer_logprobs.contract) if r.trainer_logprobs is not None else None,
    "weight_version": lambda r: r.rollout.provenance.weight_version,
    "path": lambda r: r.rollout.provenance.path,
    "cached": lambda r: r.rollout.provenance.cached,
    "support_ids": lambda r: r.rollout.support.ids if r.rollout.support is not None else None,
    "support_offsets": lambda r: r.rollout.support.offsets if r.rollout.support is not None else None,
    "params": lambda r: asdict(r.rollout.params),
}
assert list(_COLUMNS) == SCHEMA.names, "every column of the schema is written, in its order"
for _type, _class in ((_PARAMS, SamplingParams), (_CONTRACT, Contract), (_VERDICT, Verdict)):
    assert [f.name for f in fields(_class)] == [f.name for f in _type], f"the schema covers {_class.__name__}"


def _encode(name: str, records: Sequence[RolloutRecord], column: Callable[[RolloutRecord], Any]) -> pa.Array:
    """One column. Numeric lists go through numpy buffers, so that no float passes through Python."""
    kind = SCHEMA.field(name).type
    values = [column(record) for record in records]
    if not pa.types.is_list(kind):
        return pa.array(values, kind)
    dtype = np.dtype(kind.value_type.to_pandas_dtype())
    present = [np.empty(0, dtype) if value is None else _exact(name, value, dtype) for value in values]
    offsets = np.concatenate([[0], np.cumsum([len(value) for value in present], dtype=np.int64)]).astype(np.int32)
    flat = np.concatenate(present) if present else np.empty(0, dtype)
    mask = pa.array([value is None for value in values], pa.bool_())
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, kind.value_type), type=kind, mask=mask)


def _exact(name: str, values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    array = np.asarray(values)
    assert dtype.kind != "f" or array.dtype == dtype, (
        f"{name} must be {dtype}, got {array.dtype}: a cast would move bits"
    )
    return array.astype(dtype, casting="same_kind", copy=False)


def _text(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def _verdict_row(verdict: Verdict | None) -> dict[str, Any] | None:
    if verdict is None:
        return None
    return {**asdict(verdict), "witness": _text(verdict.witness)}


def _arrays(column: pa.ChunkedArray) -> list[np.ndarray | None]:
    found: list[np.ndarray | None] = []
    for chunk in column.chunks:
        found += [None if not item.is_valid else item.values.to_numpy(zero_copy_only=False) for item in chunk]
    return found


def _record(row: Mapping[str, Any]) -> RolloutRecord:
    params = {**row["params"], "stop": tuple(row["params"]["stop"])}
    params["stop_token_ids"] = tuple(params["stop_token_ids"])
    support = Support(row["support_ids"], row["support_offsets"]) if row["support_ids"] is not None else None
    rollout = Rollout(
        id=row["rollout_id"],
        task_id=row["task_id"],
        prompt_ids=row["prompt_ids"],
        token_ids=row["token_ids"],
        text=row["completion"],
        finish_reason=row["finish_reason"],
        params=SamplingParams(**params),
        sampler_logprobs=_logprobs(row["sampler_logprobs"], row["sampler_contract"]),
        provenance=Provenance(row["weight_version"], row["path"], row["cached"]),
        support=support,
    )
    parts, verdict = row["reward_parts"], row["verdict"]
    if verdict is not None:
        verdict = Verdict(**{**verdict, "span": tuple(verdict["span"]) if verdict["span"] is not None else None})
    return RolloutRecord(
        step=row["step"],
        rollout=rollout,
        prompt=row["prompt"],
        reward=Reward(rollout.id, row["reward"], dict(parts)) if parts is not None else None,
        advantage=row["advantage"],
        trainer_logprobs=None
        if row["trainer_contract"] is None
        else _logprobs(row["trainer_logprobs"], row["trainer_contract"]),
        verdict=verdict,
    )


def _logprobs(values: np.ndarray, contract: Mapping[str, Any]) -> Logprobs:
    return Logprobs(values, Contract(**{**contract, "weight_versions": tuple(contract["weight_versions"])}))
