"""Lockstep's own runs: a run directory, or files of its ``rollouts/``.

In: what lockstep.trace wrote. Out: the observations that the auditor beside the run saw, as far as they are on disk:
both series, provenance, supports, and metrics where the trainer's logprobs of a step are those that they were computed
from. Engine and trainer are one computation, so any differing bit is a mismatch.

Source: docs/run-directory.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lockstep.adapters.foreign.files import in_order
from lockstep.adapters.foreign.gaps import Gaps
from lockstep.adapters.foreign.run import ForeignRun, Format
from lockstep.errors import InputError, LockstepError, boundary, message
from lockstep.parity.observation import Observation, Sample, Statement
from lockstep.trace import RunDirectory, rollouts
from lockstep.trace.rollout_schema import KEY
from lockstep.trace.rollouts import RolloutRecord

REMEMBERED = 8
"""Steps whose samples are known again if a batch is served twice."""


def _opened(path: Path, files: Sequence[Path]) -> ForeignRun:
    run = RunDirectory(path) if path.is_dir() and (path / "rollouts").is_dir() else None
    ordered = in_order([file for file in files if run is None or file.parent == path / "rollouts"] or files)
    version = None if run is None else _version(run)
    return ForeignRun(FORMAT.name, path, lambda gaps: _observations(run, ordered, gaps), version, exact=True)


def _observations(run: RunDirectory | None, files: Sequence[Path], gaps: Gaps) -> Iterator[Observation]:
    metrics = {} if run is None else _metrics(run, gaps)
    before: deque[frozenset[str]] = deque(maxlen=REMEMBERED)
    for file in files:
        records = _records(file)
        if not records:
            continue
        step = records[0].step
        samples = [_sample(record) for record in records]
        history = frozenset().union(*before)
        engine = Statement("engine", _settings(records))
        yield Observation(step, samples, engine, metrics=metrics.get(step, {}), history=history)
        before.append(frozenset(sample.id for sample in samples))


def _records(file: Path) -> list[RolloutRecord]:
    """Raises `InputError` that names the file, whatever is wrong inside."""
    try:
        with boundary("reading"):
            return rollouts.read(file)
    except LockstepError as cause:
        rule, do = "must hold rollouts, undamaged", "Leave the file out, or restore it"
        raise InputError(message(str(file), rule, got=cause, expected="what the run wrote", do=do)) from cause


def _sample(record: RolloutRecord) -> Sample:
    return Sample.of(record.rollout, None if record.trainer_logprobs is None else record.trainer_logprobs.values)


def _settings(records: Sequence[RolloutRecord]) -> dict[str, object]:
    """What the contracts of all rollouts of a step agree on."""
    contracts = [record.rollout.sampler_logprobs.contract for record in records]
    modes, heads = {c.mode for c in contracts}, {c.head_dtype for c in contracts}
    said: dict[str, object] = {"logprobs_mode": f"{modes.pop()}_logprobs"} if len(modes) == 1 else {}
    return {**said, "head_dtype": heads.pop()} if len(heads) == 1 else said


def _metrics(run: RunDirectory, gaps: Gaps) -> Mapping[int, Mapping[str, float]]:
    """Numbers of metrics.jsonl by step, where they are of the recorded logprobs: each batch trained once, on policy."""
    try:
        with boundary(f"metrics ({run.path})"):
            tree = run.config_tree()
            if tree["pipeline"]["max_lag"] != 0 or tree["train"]["num_minibatches"] != 1:
                return {}
            lines = run.metrics()
            return {line["step"]: {k: float(v) for k, v in line.items() if _number(v)} for line in lines}
    except LockstepError as cause:
        gaps.add(f"no metrics: {cause}")
        return {}


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _version(run: RunDirectory) -> str | None:
    try:
        with boundary(f"manifest ({run.path})"):
            return str(run.manifest()["versions"]["lockstep-rl"])
    except LockstepError:
        return None


FORMAT = Format(
    "Lockstep rollouts",
    "Lockstep",
    "Parquet with lockstep.rollouts in its metadata (a run directory)",
    _opened,
    of_parquet=lambda _, metadata: KEY in metadata,
)
