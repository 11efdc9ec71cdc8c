"""Checkpoints of the trainer: everything a resumed run needs to end with the same bits.

In: a trainer. Out: a directory that is there whole or not at all, and the same trainer from it.

    checkpoints/step_20/  master.safetensors  moments.safetensors  [reference.safetensors]  state.json  COMPLETE
    written as .step_20.XXXX.partial, fsync'd, then renamed; COMPLETE, written last, holds the others' SHA-256
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lockstep.config import RunConfig, to_toml
from lockstep.errors import ModelError, StorageError, message
from lockstep.models.directory import flush_to_disk, whole_directory
from lockstep.train.trainer import Trainer
from lockstep.weight_update import WeightVersion

SCHEMA = 1
MARKER = "COMPLETE"
_MASTER, _MOMENTS, _REFERENCE, _STATE = (
    "master.safetensors",
    "moments.safetensors",
    "reference.safetensors",
    "state.json",
)
_NAME = re.compile(r"step_(\d+)")


@dataclass(frozen=True, slots=True)
class State:
    """What a checkpoint says about itself. `extra` is the caller's, as it was given."""

    step: int
    version: WeightVersion
    config_digest: str
    extra: Mapping[str, Any]


def config_digest(config: RunConfig) -> str:
    """SHA-256 (hex) of the resolved configuration."""
    return hashlib.sha256(to_toml(config).encode()).hexdigest()


def save(directory: Path, trainer: Trainer, step: int, extra: Mapping[str, Any] | None = None) -> Path:
    """Write ``directory/step_{step}`` and keep the newest `train.keep_checkpoints`. `extra` must be JSON.

    Raises `StorageError` if the disk refuses: then nothing of this checkpoint is left and older ones are as they were.
    """
    trainer.require_whole()
    target = directory / f"step_{step}"
    optimizer = trainer.optimizer
    state = {
        "schema": SCHEMA,
        "step": step,
        "version": {"number": trainer.version.number, "digest": trainer.version.digest},
        "dtype": trainer.config.engine.dtype,
        "config_digest": config_digest(trainer.config),
        "objective": optimizer.objective,
        "optimizer_steps": optimizer.steps,
        "extra": dict(extra or {}),
    }
    tensors = {_MASTER: optimizer.masters, _MOMENTS: optimizer.moments()}
    if trainer.reference is not None:
        tensors[_REFERENCE] = trainer.reference
    with whole_directory(target) as partial:
        for name, named in tensors.items():
            _write_tensors(partial / name, named)
        (partial / _STATE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        marker = {}
        for name in [*tensors, _STATE]:
            flush_to_disk(partial / name)
            marker[name] = _file_digest(partial / name)
        (partial / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
    _prune(directory, trainer.config.train.keep_checkpoints, target)
    return target


def latest(directory: Path) -> Path | None:
    """The complete checkpoint with the highest step, or None."""
    found = complete(directory)
    return found[max(found)] if found else None


def complete(directory: Path) -> dict[int, Path]:
    """The checkpoints that have their marker, by rising step. `load` says whether their files are whole."""
    if not directory.is_dir():
        return {}
    found = {int(match[1]): p for p in directory.iterdir() if (match := _NAME.fullmatch(p.name))}
    return {step: found[step] for step in sorted(found) if (found[step] / MARKER).is_file()}


def load(path: Path, trainer: Trainer) -> State:
    """Put the checkpoint at `path` into `trainer`: weights, moments, counts and version, bit for bit.

    Raises `ModelError` naming the file that is missing, damaged or of another model; the trainer is untouched then,
    unless the very weights do not have the digest of their version.
    """
    state = _verified(path)
    if state["dtype"] != trainer.config.engine.dtype:
        raise _bad(path / _STATE, "engine.dtype must be that of the run", trainer.config.engine.dtype, state["dtype"])
    optimizer, names = trainer.optimizer, list(trainer.optimizer.masters)
    master, moments = _read_tensors(path / _MASTER), _read_tensors(path / _MOMENTS)
    _require_like(path / _MASTER, master, optimizer.masters)
    if moments:
        kinds = sorted({name.partition(".")[0] for name in moments})
        _require_like(path / _MOMENTS, moments, {f"{k}.{n}": optimizer.masters[n] for k in kinds for n in names})
    reference = None
    if (path / _REFERENCE).exists():
        reference = {name: t.to(trainer.device) for name, t in _read_tensors(path / _REFERENCE).items()}
        _require_like(path / _REFERENCE, reference, trainer.params)
    version = WeightVersion(**state["version"])
    optimizer.restore(master, moments, state["objective"], state["optimizer_steps"])
    trainer.restored(version, reference)
    return State(state["step"], version, state["config_digest"], state["extra"])


def masters(path: Path) -> tuple[WeightVersion, dict[str, Tensor]]:
    """Version and fp32 master weights of the checkpoint at `path`, for who has no trainer. Raises `ModelError`."""
    state = _verified(path)
    return WeightVersion(**state["version"]), _read_tensors(path / _MASTER)


def _write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    try:
        save_file(dict(tensors), file)
    except SafetensorError as cause:  # its words for an I/O error; the writer copies nothing, so memory does not grow
        expected, do = "a writable directory with enough space", "Free space, then resume from the last checkpoint"
        raise StorageError(
            message(f"checkpoint ({file})", "it must be written whole", got=cause, expected=expected, do=do)
        ) from cause


def _read_tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as cause:
        raise _bad(file, "it must be whole safetensors", cause, "a readable file") from None


def _verified(path: Path) -> dict[str, Any]:
    """The parsed state of a checkpoint of which every file has the digest that the marker holds."""
    marker = _read_json(path / MARKER)
    for name in (_MASTER, _MOMENTS, _STATE):
        if name not in marker:
            raise _bad(path / MARKER, "the marker must list every file", ", ".join(marker), name)
    for name, expected in marker.items():
        if not (path / name).is_file():
            raise _bad(path / name, "the file must be there", "nothing", "a file")
        got = _file_digest(path / name)
        if got != expected:
            raise _bad(path / name, "its SHA-256 must be the marker's", got, expected)
    state = _read_json(path / _STATE)
    if state.get("schema") != SCHEMA:
        raise _bad(path / _STATE, "its schema must be known", state.get("schema"), SCHEMA)
    return state


def _read_json(file: Path) -> dict[str, Any]:
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise _bad(file, "it must be readable JSON", cause, "a whole file") from None
    if not isinstance(tree, dict):
        raise _bad(file, "it must be a JSON object", type(tree).__name__, "an object")
    return tree


def _require_like(file: Path, got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name in {**expected, **got}:
        mine, theirs = expected.get(name), got.get(name)
        if mine is None or theirs is None or mine.shape != theirs.shape or mine.dtype != theirs.dtype:
            shown = [("no such tensor" if t is None else f"{t.dtype} {tuple(t.shape)}") for t in (theirs, mine)]
            raise _bad(file, f"{name} must fit the model", *shown)


def _file_digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _prune(directory: Path, keep: int, newest: Path) -> None:
    """Remove all but the last `keep`; the marker goes first, so that half a removal is not taken for a checkpoint."""
    for old in list(complete(directory).values())[:-keep]:
        if old != newest:
            (old / MARKER).unlink()
            shutil.rmtree(old)


def _bad(file: Path, rule: str, got: object, expected: object) -> ModelError:
    do = "Resume from another checkpoint, or start the run again"
    return ModelError(message(f"checkpoint ({file})", rule, got=got, expected=expected, do=do))
