"""The run directory: what a run writes, one writer at a time, whole after any crash.

In: configuration, metrics, rollouts, refusals. Out: the files of docs/run-directory.md. A line of `metrics.jsonl` is a
step that happened; everything else is written to a temporary file, synced and renamed.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from lockstep.config import RunConfig, parse, to_toml
from lockstep.core import Decision
from lockstep.errors import InputError, message
from lockstep.trace import manifest, rollouts
from lockstep.trace.durable import Lock, append_line, replace_file, storage, whole_lines
from lockstep.trace.metrics import encode_line, plain, read_lines
from lockstep.trace.observer import OUTCOMES
from lockstep.trace.rollouts import RolloutRecord

MAY_CHANGE = ("max_steps", "output_dir", "report_to", "train.checkpoint_every", "train.keep_checkpoints", "eval.every")
"""Settings that a resumed run may have otherwise than at its start: they move no weight. (An asynchronous run lets all
that is in flight come in before a checkpoint, so there `train.checkpoint_every` does.)"""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A step that a gate did not admit; `batch` holds its rollouts (None if they were not kept)."""

    step: int
    outcome: str
    subject: str
    reason: str
    evidence: Mapping[str, Any]
    batch: Path | None


class RunDirectory:
    """A run on disk. `RunDirectory(path)` reads; `RunDirectory.start(path, config)` also writes, until `close`.

    >>> with RunDirectory.start(path, config) as run:   # doctest: +SKIP
    ...     run.append({"step": 1, "reward": 0.25, "parity/max": 0.0})
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.toml"
        self.manifest_file = self.path / "manifest.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.evaluations_file = self.path / "evaluations.jsonl"
        self.report_file = self.path / "report.html"
        self.checkpoints = self.path / "checkpoints"
        self._lock: Lock | None = None
        self._last_step = 0

    # -- writing -------------------------------------------------------------------------------------------------

    @classmethod
    def start(cls, path: Path, config: RunConfig, *, resume: bool = False) -> Self:
        """Take `path` for writing, made if need be; with `resume`, go on in a run that is there.

        Raises `InputError` if another process writes there, if it holds a run and `resume` is false (nothing is
        touched), if it holds none and `resume` is true, or if `config` differs in more than `MAY_CHANGE`;
        `StorageError` if the directory cannot be written. A line that a kill cut off is removed.
        """
        run = cls(path)
        with ExitStack() as undo:
            with storage(run.path):
                run.path.mkdir(parents=True, exist_ok=True)
            run._lock = Lock(run.path / ".lock")
            undo.callback(run.close)
            (run._continue if resume else run._begin)(config)
            undo.pop_all()
        return run

    def close(self) -> None:
        """Give the directory back to other processes. Safe to call twice."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def append(self, metrics: Mapping[str, float | None]) -> None:
        """Add the line of a step, on disk when this returns; steps ascend. Raises `StorageError`, the file as before.

        A number that is not finite is written as the string "NaN", "Infinity" or "-Infinity", never as null, and
        reads back as the float; None (null) says that nothing was measured.
        """
        assert self._lock is not None, "a run is written between start() and close()"
        step = metrics["step"]
        assert isinstance(step, int) and step > self._last_step, f"step {step} after step {self._last_step}"
        append_line(self.metrics_file, encode_line(metrics))
        self._last_step = step

    def append_evaluation(self, metrics: Mapping[str, float | None]) -> None:
        """Add an evaluation after `metrics["step"]` steps (0: before the first). Kept apart: it is no step."""
        assert self._lock is not None and isinstance(metrics["step"], int)
        append_line(self.evaluations_file, encode_line(metrics))

    def truncate_after(self, step: int) -> None:
        """Forget the steps after `step` (the last checkpoint's): metrics, evaluations, rollouts. Refusals stay."""
        assert self._lock is not None, "a run is written between start() and close()"
        for file in (self.metrics_file, self.evaluations_file):
            if file.exists():
                kept = [line for line in file.read_bytes().splitlines() if orjson.loads(line)["step"] <= step]
                replace_file(file, b"".join(line + b"\n" for line in kept))
        for number in self.rollout_steps():
            if number > step:
                with storage(self.rollouts_file(number)):
                    self.rollouts_file(number).unlink()
        self._last_step = self._last_on_disk()

    def write_rollouts(self, step: int, records: Sequence[RolloutRecord]) -> None:
        """Write the rollouts that `step` trained on."""
        assert self._lock is not None, "a run is written between start() and close()"
        rollouts.write(self.rollouts_file(step), records)

    def write_refusal(self, step: int, decision: Decision, records: Sequence[RolloutRecord] = ()) -> Path:
        """Keep a decision that did not admit `step`, and its batch for inspection. Returns the decision's file."""
        assert self._lock is not None and not decision.admitted, "only refusals are kept one by one"
        batch = f"parity/step_{step:06d}.parquet"
        if records:
            rollouts.write(self.path / batch, records)
        tree = {"step": step, "at": manifest.now(), **plain(decision), "batch": batch if records else None}
        file = self.path / "gates" / f"step_{step:06d}.json"
        replace_file(file, orjson.dumps(tree, option=orjson.OPT_INDENT_2))
        return file

    def update_manifest(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Set top-level keys of the manifest (e.g. `model`, `invariance`); returns all of it, and `directory`."""
        assert self._lock is not None, "a run is written between start() and close()"
        tree = self.manifest() | plain(changes)
        self._write_manifest(tree)
        return {**tree, "directory": str(self.path)}  # not on disk: a run may be moved, and its place is private

    def finish(self, outcome: str, summary: Mapping[str, Any]) -> dict[str, Any]:
        """Record how the run ended: one of `observer.OUTCOMES`, the time, and the summary."""
        assert outcome in OUTCOMES, f"outcome {outcome} is not one of {OUTCOMES}"
        return self.update_manifest({"ended": manifest.now(), "outcome": outcome, "summary": summary})

    # -- reading -------------------------------------------------------------------------------------------------

    def weights(self, step: int) -> Path:
        """The HF directory of the weights after `step`."""
        return self.path / "weights" / f"step_{step}"

    def rollouts_file(self, step: int) -> Path:
        """The rollouts that `step` trained on."""
        return self.path / "rollouts" / f"step_{step:06d}.parquet"

    def rollout_steps(self) -> list[int]:
        """Steps whose rollouts are on disk, ascending."""
        return sorted(int(file.stem.removeprefix("step_")) for file in (self.path / "rollouts").glob("step_*.parquet"))

    def rollouts(self, step: int) -> list[RolloutRecord]:
        """Read a step's rollouts. Raises `InputError` if they are not there or damaged."""
        return rollouts.read(self.rollouts_file(step))

    def config_tree(self) -> dict[str, Any]:
        """The recorded configuration as it was written, not validated (it may come from another version)."""
        try:
            return tomllib.loads(self.config_file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as cause:
            raise self._unreadable(self.config_file, cause) from cause

    def config(self) -> RunConfig:
        """The recorded configuration."""
        return parse(self.config_tree())

    def manifest(self) -> dict[str, Any]:
        """The manifest."""
        try:
            return orjson.loads(self.manifest_file.read_bytes())
        except (OSError, orjson.JSONDecodeError) as cause:
            raise self._unreadable(self.manifest_file, cause) from cause

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`; one that is being written is left out. `StorageError` names a bad line."""
        return read_lines(self.metrics_file)

    def evaluations(self) -> list[dict[str, Any]]:
        """The lines of `evaluations.jsonl`."""
        return read_lines(self.evaluations_file)

    def refusals(self) -> list[Refusal]:
        """What the gates refused, by step."""
        found = []
        for file in sorted((self.path / "gates").glob("step_*.json")):
            try:
                tree = orjson.loads(file.read_bytes())
            except (OSError, orjson.JSONDecodeError) as cause:
                raise self._unreadable(file, cause) from cause
            tree["batch"] = self.path / tree["batch"] if tree["batch"] else None
            found.append(Refusal(**{field: tree[field] for field in Refusal.__dataclass_fields__}))
        return found

    def holds_run(self) -> bool:
        """Whether a fresh start would overwrite anything; a run that ended before its first step is nothing."""
        work = [self.metrics_file, self.checkpoints]
        work += [self.path / name for name in ("rollouts", "weights", "gates", "parity")]
        if not self.manifest_file.exists():  # then these are somebody else's
            work += [self.config_file, self.evaluations_file, self.report_file]
        return any(file.exists() for file in work)

    def check(self) -> None:
        """Prove the invariants: steps ascend, no line is torn, no file half-written, the counter is the last step."""
        steps = [line["step"] for line in self.metrics()]
        assert steps == sorted(set(steps)), f"steps ascend: {steps}"
        assert not self._half_written(), f"half-written: {self._half_written()}"
        if self._lock is not None:
            assert self._last_on_disk() == self._last_step, f"last step {self._last_step}, on disk {steps[-1:]}"

    # -- inside --------------------------------------------------------------------------------------------------

    def _last_on_disk(self) -> int:
        return max((line["step"] for line in self.metrics()), default=0)

    def _half_written(self) -> list[Path]:
        """Temporary files of ours that a kill left behind."""
        folders = (self.path, *(self.path / name for name in ("rollouts", "gates", "parity")))
        return [file for folder in folders for file in folder.glob(".*.tmp") if file.is_file()]

    def _begin(self, config: RunConfig) -> None:
        if self.holds_run():
            raise InputError(
                message(
                    f"run directory ({self.path})", "a fresh run needs a directory without one",
                    got=f"a run of {len(self.metrics())} steps", expected="an empty or new directory",
                    do="Continue it with --resume, move it aside with --fresh, or give another output_dir=",
                )
            )  # fmt: skip
        with storage(self.evaluations_file):
            self.evaluations_file.unlink(missing_ok=True)
        self._write_manifest(manifest.collect(config))
        replace_file(self.config_file, to_toml(config).encode())

    def _continue(self, config: RunConfig) -> None:
        if not self.config_file.exists():
            raise InputError(
                message(
                    f"run directory ({self.path})", "--resume continues a run that is there",
                    got="no config.toml in it", expected="a run directory",
                    do="Leave out --resume, or give the run's directory with output_dir=",
                )
            )  # fmt: skip
        self._same(config)
        for leftover in self._half_written():
            leftover.unlink(missing_ok=True)
        for file in (self.metrics_file, self.evaluations_file):
            data = file.read_bytes() if file.exists() else b""
            if whole_lines(data) != data:
                replace_file(file, whole_lines(data))
            read_lines(file)  # a line damaged in the middle is reported now, not after the first step
        self._last_step = self._last_on_disk()
        before = self.manifest()
        entry = manifest.resumption(before, self._last_step)
        self._write_manifest(before | {"ended": None, "outcome": None, "resumed": [*before["resumed"], entry]})
        replace_file(self.config_file, to_toml(config).encode())

    def _same(self, config: RunConfig) -> None:
        before, after = _flat(self.config().model_dump(mode="json")), _flat(config.model_dump(mode="json"))
        may_change = set(MAY_CHANGE) - ({"train.checkpoint_every"} if config.pipeline.max_lag else set())
        unlike = [key for key in before if before[key] != after[key] and key not in may_change]
        if unlike:
            raise InputError(
                message(
                    f"resume ({', '.join(unlike)})", "a resumed run keeps the settings that decide its weights",
                    got=", ".join(repr(after[key]) for key in unlike),
                    expected=", ".join(repr(before[key]) for key in unlike),
                    do="Take these settings back, or start another run with another output_dir=",
                )
            )  # fmt: skip

    def _write_manifest(self, tree: Mapping[str, Any]) -> None:
        replace_file(self.manifest_file, orjson.dumps(plain(tree), option=orjson.OPT_INDENT_2))

    def _unreadable(self, file: Path, cause: Exception) -> InputError:
        do = "Give the directory of a run, for example runs/tiny"
        return InputError(
            message(f"run directory ({self.path})", f"needs {file.name}", got=cause, expected="a readable file", do=do)
        )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
