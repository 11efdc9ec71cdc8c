"""Lockstep's own runs: a run directory, or files of its ``rollouts/``.

In: what lockstep.trace wrote. Out: the observations that the auditor beside the run saw, as far as they are on disk:
both series, provenance, supports, the trainer's version, and metrics where the trainer's logprobs of a step are those
that they were computed from. Engine and trainer are one computation, so any differing bit is a mismatch. A batch that a
gate refused comes last, unless its step was taken after all.

Source: docs/run-directory.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
from lockstep.trace.versions import published, saved
from lockstep.weight_update import WeightVersion

REMEMBERED = 8
"""Steps whose samples are known again if a batch is served twice."""

LISTED = 8
"""Steps that are named in one sentence."""


@dataclass(frozen=True, slots=True)
class _Told:
    """What a run says beside its rollouts. `metrics` by step; `before`: the weights that a step began with, by step;
    `expected`: whether these are also the ones that every token of the step should have been drawn with."""

    metrics: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    before: Mapping[int, WeightVersion] = field(default_factory=dict)
    expected: bool = False


def _opened(path: Path, files: Sequence[Path]) -> ForeignRun:
    whole = path.is_dir() and ((path / "rollouts").is_dir() or (path / "config.toml").is_file())
    run = RunDirectory(path) if whole else None
    ordered = in_order(files) if run is None else _of_run(run, files)
    version = None if run is None else _version(run)
    return ForeignRun(FORMAT.name, path, lambda gaps: _observations(run, ordered, gaps), version, exact=True)


def _of_run(run: RunDirectory, files: Sequence[Path]) -> list[Path]:
    """The rollouts of its steps, then what was refused; a refused step that was taken after all is told by these."""
    steps = run.path / "rollouts"
    taken = [file for file in files if file.parent == steps]
    refused = [file for file in files if file.parent == run.path / "parity" and not (steps / file.name).exists()]
    return [*in_order(taken), *in_order(refused)] or in_order(files)


def _observations(run: RunDirectory | None, files: Sequence[Path], gaps: Gaps) -> Iterator[Observation]:
    told = _Told() if run is None else _told(run, gaps)
    before: deque[frozenset[str]] = deque(maxlen=REMEMBERED)
    for file in files:
        try:
            records = _records(file)
        except InputError as damaged:  # each file stands for itself: the others are as good as before
            gaps.add(str(damaged), damage=True)
            continue
        if not records:
            continue
        step = records[0].step
        samples = [_sample(record) for record in records]
        version = told.before.get(step)
        label = (None, None) if version is None else (version.number, version.digest)
        yield Observation(
            step,
            samples,
            Statement("engine", _settings(records)),
            Statement("trainer", {}, *label),
            Statement("publisher", {}, *label) if told.expected else Statement("publisher"),
            told.metrics.get(step, {}),
            history=frozenset().union(*before),
        )
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


def _told(run: RunDirectory, gaps: Gaps) -> _Told:
    """Metrics only where they are of the recorded logprobs: each batch trained once, on policy."""
    try:
        with boundary(f"metrics ({run.path})"):
            tree, lines = run.config_tree(), run.metrics()
            _note_lost(run, [line["step"] for line in lines], gaps)
            synchronous = tree["pipeline"]["max_lag"] == 0
            metrics: dict[int, dict[str, float]] = {}
            if synchronous and tree["train"]["num_minibatches"] == 1:
                metrics = {line["step"]: {k: float(v) for k, v in line.items() if _number(v)} for line in lines}
            after = saved(run.checkpoints) | published(lines)
            before = {step + 1: version for step, version in after.items()}
            return _Told(metrics, before, synchronous)
    except LockstepError as cause:
        gaps.add(f"no metrics: {cause}", damage=True)
        return _Told()


def _note_lost(run: RunDirectory, steps: Sequence[int], gaps: Gaps) -> None:
    """Steps that happened, and whose rollouts are not there, or are a file without a byte."""
    files = {step: run.rollouts_file(step) for step in steps}
    lost = [str(step) for step, file in files.items() if not (file.is_file() and file.stat().st_size)]
    if lost:
        more = f" and {len(lost) - LISTED} more" if len(lost) > LISTED else ""
        gaps.add(f"no rollouts of step {', '.join(lost[:LISTED])}{more}: they are gone", damage=True)


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
