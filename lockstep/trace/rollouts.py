"""Rollouts as Parquet: everything a step was trained on, bit for bit, one row a completion.

In: `RolloutRecord`s. Out: a zstd Parquet file that reads back to equal records, and that any Parquet tool can open.
docs/run-directory.md lists the columns; rollout_schema.py defines them. Parquet's dictionaries are off: they compare
floats as numbers, and here the bits count. So are column statistics and Arrow's own copy of the schema: a file of one
step is read whole, and they were a third of its bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lockstep.core import Contract, Logprobs, Provenance, Reward, Rollout, SamplingParams, Span, Support, Verdict
from lockstep.errors import InputError, message
from lockstep.trace.durable import replacing
from lockstep.trace.rollout_schema import KEY, READABLE, SCHEMA, VERSION


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
    with replacing(path) as file, _writer(file) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({KEY: VERSION})


def read(path: Path) -> list[RolloutRecord]:
    """The records of `path`, equal to those written; arrays are read-only. Raises `InputError` for any other file."""
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
    except (OSError, pa.ArrowException) as cause:
        raise _not_rollouts(path, cause) from cause
    version = (table.schema.metadata or {}).get(KEY, b"unknown")
    if version not in READABLE or not table.schema.equals(READABLE[version]):
        raise _not_rollouts(path, f"schema {version.decode('ascii', 'replace')}")
    columns = {
        field.name: _arrays(table[field.name]) if _is_ragged(field.type) else table[field.name].to_pylist()
        for field in table.schema
    }
    return [_record({name: column[row] for name, column in columns.items()}) for row in range(table.num_rows)]


def _writer(file: BinaryIO) -> pq.ParquetWriter:
    return pq.ParquetWriter(
        file, SCHEMA, compression="zstd", use_dictionary=False, write_statistics=False, store_schema=False
    )


def _not_rollouts(path: Path, got: object) -> InputError:
    known = " or ".join(version.decode() for version in READABLE)
    rule, expected = "must be a rollout file", f"Parquet with lockstep.rollouts {known}"
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
    "prompt_logprobs": lambda r: _values(r.rollout.prompt_logprobs),
    "prompt_contract": lambda r: _contract(r.rollout.prompt_logprobs),
    "trainer_logprobs": lambda r: _values(r.trainer_logprobs),
    "trainer_contract": lambda r: _contract(r.trainer_logprobs),
    "weight_version": lambda r: r.rollout.provenance.weight_version,
    "path": lambda r: r.rollout.provenance.path,
    "cached": lambda r: r.rollout.provenance.cached,
    "spans": lambda r: [asdict(span) for span in r.rollout.provenance.spans],
    "support_ids": lambda r: r.rollout.support.ids if r.rollout.support is not None else None,
    "support_offsets": lambda r: r.rollout.support.offsets if r.rollout.support is not None else None,
    "params": lambda r: _params_row(r.rollout.params),
}
assert list(_COLUMNS) == SCHEMA.names, "every column of the schema is written, in its order"


def _encode(name: str, records: Sequence[RolloutRecord], column: Callable[[RolloutRecord], Any]) -> pa.Array:
    """One column. Numeric lists go through numpy buffers, so that no float passes through Python."""
    kind = SCHEMA.field(name).type
    values = [column(record) for record in records]
    if not _is_ragged(kind):
        return pa.array(values, kind)
    dtype = np.dtype(kind.value_type.to_pandas_dtype())
    present = [np.empty(0, dtype) if value is None else _exact(name, value, dtype) for value in values]
    offsets = np.concatenate([[0], np.cumsum([len(value) for value in present], dtype=np.int64)]).astype(np.int32)
    flat = np.concatenate(present) if present else np.empty(0, dtype)
    mask = pa.array([value is None for value in values], pa.bool_())
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, kind.value_type), type=kind, mask=mask)


def _is_ragged(kind: pa.DataType) -> bool:
    """Whether it is lists of numbers."""
    return pa.types.is_list(kind) and not pa.types.is_nested(kind.value_type)


def _exact(name: str, values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    array = np.asarray(values)
    assert dtype.kind != "f" or array.dtype == dtype, (
        f"{name} must be {dtype}, got {array.dtype}: a cast would move bits"
    )
    return array.astype(dtype, casting="same_kind", copy=False)


def _text(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def _values(logprobs: Logprobs | None) -> np.ndarray | None:
    return logprobs.values if logprobs is not None else None


def _contract(logprobs: Logprobs | None) -> dict[str, Any] | None:
    return asdict(logprobs.contract) if logprobs is not None else None


def _params_row(params: SamplingParams) -> dict[str, Any]:
    return {**asdict(params), "logit_bias": [{"id": i, "bias": bias} for i, bias in params.logit_bias]}


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
    support = Support(row["support_ids"], row["support_offsets"]) if row["support_ids"] is not None else None
    sampler_logprobs = _logprobs(row["sampler_logprobs"], row["sampler_contract"])
    assert sampler_logprobs is not None, "every rollout has a contract"
    rollout = Rollout(
        id=row["rollout_id"],
        task_id=row["task_id"],
        prompt_ids=row["prompt_ids"],
        token_ids=row["token_ids"],
        text=row["completion"],
        finish_reason=row["finish_reason"],
        params=_params(row["params"]),
        sampler_logprobs=sampler_logprobs,
        provenance=Provenance(
            row["weight_version"], row["path"], row["cached"], tuple(Span(**span) for span in row.get("spans", ()))
        ),
        support=support,
        prompt_logprobs=_logprobs(row.get("prompt_logprobs"), row.get("prompt_contract")),
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
        trainer_logprobs=_logprobs(row["trainer_logprobs"], row["trainer_contract"]),
        verdict=verdict,
    )


def _params(row: Mapping[str, Any]) -> SamplingParams:
    """What version 1 did not know takes its default: nothing was adjusted then."""
    lists = {name: tuple(row[name]) for name in ("stop", "stop_token_ids")}
    if "bad_words" in row:
        lists["logit_bias"] = tuple((entry["id"], entry["bias"]) for entry in row["logit_bias"])
        lists["bad_words"] = tuple(tuple(word) for word in row["bad_words"])
    return SamplingParams(**{**row, **lists})


def _logprobs(values: np.ndarray | None, contract: Mapping[str, Any] | None) -> Logprobs | None:
    if values is None or contract is None:
        return None
    return Logprobs(values, Contract(**{**contract, "weight_versions": tuple(contract["weight_versions"])}))
