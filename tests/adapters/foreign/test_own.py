"""Lockstep's own runs, seen as anybody's: with both series, every bit of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lockstep.adapters.foreign.detection import read
from lockstep.config import RunConfig
from lockstep.parity.observation import Observation
from lockstep.trace import RunDirectory, rollouts
from lockstep.trace.rollout_schema import SCHEMA


def test_observations_are_those_of_the_run(good, tmp_path: Path):
    run = read(good.run("Lockstep rollouts", tmp_path / "run"))
    first, second = run.observations()
    assert (first.step, second.step) == (1, 2)
    assert run.exact
    assert run.version
    sample = first.samples[1]
    assert sample.id == "s1/1"
    assert np.array_equal(sample.sampler.view(np.int32), sample.trainer.view(np.int32))
    assert sample.versions.tolist() == [1, 1, 1]
    assert sample.params.temperature == 0.5
    assert first.engine.settings == {"logprobs_mode": "processed_logprobs", "head_dtype": "float32"}
    assert first.metrics["ratio_new_old"] == 1.0
    assert first.history == frozenset()
    assert second.history == {"s1/0", "s1/1"}


def test_what_is_allowed(good, tmp_path: Path):
    allows = read(good.run("Lockstep rollouts", tmp_path / "run")).allows
    assert {permission.answer for permission in allows.values()} == {"yes", "partly", "given a reference"}
    assert str(allows["objective"]) == "yes - metrics (ratio_new_old)"


@pytest.mark.parametrize("overrides", [{"pipeline": {"max_lag": 1}}, {"train": {"num_minibatches": 2}}])
def test_metrics_of_other_logprobs_than_those_recorded_are_left_out(good, tmp_path: Path, overrides: dict):
    with RunDirectory.start(tmp_path, RunConfig(model="tiny", **overrides)) as run:
        run.write_rollouts(1, [good.lockstep_record(1)])
        run.append({"step": 1, "ratio_new_old": 2.0})
    (observation,) = read(tmp_path).observations()
    assert observation.metrics == {}


def test_rollouts_without_their_run(good, tmp_path: Path):
    path = good.run("Lockstep rollouts", tmp_path / "run")
    for place in (path / "rollouts", path / "rollouts" / "step_000002.parquet"):
        run = read(place)
        assert [o.step for o in run.observations()][-1] == 2
        assert run.version is None


def test_a_refused_batch_comes_last(good, tmp_path: Path):
    path = good.run("Lockstep rollouts", tmp_path / "run")
    rollouts.write(path / "parity" / "step_000003.parquet", [good.lockstep_record(3)])
    assert [o.step for o in read(path).observations()] == [1, 2, 3]
    assert [o.step for o in read(path / "parity").observations()] == [3]


def test_a_refused_batch_whose_step_was_taken_after_all_is_not_looked_at(good, tmp_path: Path):
    """It holds the same samples: somebody would call them a repetition."""
    path = good.run("Lockstep rollouts", tmp_path / "run")
    rollouts.write(path / "parity" / "step_000002.parquet", [good.lockstep_record(2)])
    assert [len(o.samples) for o in read(path).observations()] == [2, 2]
    (path / "rollouts" / "step_000002.parquet").write_bytes(b"PAR1")  # also if that file is damaged
    assert [o.step for o in read(path).observations()] == [1]


def test_a_run_that_was_refused_at_its_first_step(good, tmp_path: Path):
    with RunDirectory.start(tmp_path / "run", RunConfig(model="tiny")) as run:
        rollouts.write(run.path / "parity" / "step_000001.parquet", [good.lockstep_record(1)])
    found = read(tmp_path / "run")
    assert [o.step for o in found.observations()] == [1]
    assert found.version
    assert found.gaps.texts == ()


def labelled(path: Path, good, **overrides: Any) -> list[Observation]:
    """Observations of a run of two steps, with a checkpoint from before the first, and labels in its metrics."""
    with RunDirectory.start(path, RunConfig(model="tiny", **overrides)) as run:
        for step in (1, 2):
            run.write_rollouts(step, [good.lockstep_record(step)])
            run.append({"step": step, "weight_version": 12 + step, "weight_digest": f"{step}" * 64})  # type: ignore[dict-item]
        rollouts.write(path / "parity" / "step_000003.parquet", [good.lockstep_record(3)])
        for step, text in (
            (0, '{"step": 0, "version": {"number": 12, "digest": "' + "0" * 64 + '"}}'),
            (1, "{"),
            (2, "[]"),
        ):
            state = run.checkpoints / f"step_{step}" / "state.json"
            state.parent.mkdir(parents=True)
            state.write_text(text)
    return list(read(path).observations())


def test_a_step_begins_with_the_weights_that_the_one_before_published(good, tmp_path: Path):
    found = labelled(tmp_path / "run", good)
    assert [(o.trainer.number, o.trainer.digest) for o in found] == [(12 + at, f"{at}" * 64) for at in range(3)]
    assert [(o.expected.number, o.expected.digest) for o in found] == [(12 + at, f"{at}" * 64) for at in range(3)]


def test_where_rollouts_run_ahead_no_one_version_is_expected(good, tmp_path: Path):
    found = labelled(tmp_path / "run", good, pipeline={"max_lag": 1})
    assert [o.trainer.number for o in found] == [12, 13, 14]
    assert {o.expected.number for o in found} == {None}


def test_a_rollout_that_was_not_scored(good, tmp_path: Path):
    rollouts.write(tmp_path / "r.parquet", [good.lockstep_record(1, trainer_logprobs=None)])
    (observation,) = read(tmp_path / "r.parquet").observations()
    assert observation.samples[0].trainer is None


def test_files_without_rollouts_are_no_steps(good, tmp_path: Path):
    rollouts.write(tmp_path / "r.parquet", [])
    assert list(read(tmp_path / "r.parquet").observations()) == []


@pytest.mark.parametrize(
    ("file", "data"),
    [
        ("config.toml", b"x = ["),
        ("config.toml", b"x = 1"),
        ("config.toml", b"\xff"),
        ("metrics.jsonl", b"3\n"),
        ("metrics.jsonl", b"x\n"),
        ("metrics.jsonl", b'{"reward": 1}\n'),
    ],
)
def test_damaged_metrics_cost_only_the_metrics(good, tmp_path: Path, file: str, data: bytes):
    path = good.run("Lockstep rollouts", tmp_path / "run")
    (path / file).write_bytes(data)
    run = read(path)
    assert [dict(o.metrics) for o in run.observations()] == [{}, {}]
    assert len(run.gaps.texts) == 1
    assert run.gaps.texts[0].startswith("no metrics: ")


@pytest.mark.parametrize("data", [b"", b"[]", b"x", b'{"versions": 3}'])
def test_a_damaged_manifest_costs_only_the_version(good, tmp_path: Path, data: bytes):
    path = good.run("Lockstep rollouts", tmp_path / "run")
    (path / "manifest.json").write_bytes(data)
    run = read(path)
    assert run.version is None
    assert len(list(run.observations())) == 2


def test_a_damaged_file_is_said_and_the_others_are_read(good, tmp_path: Path):
    path = good.run("Lockstep rollouts", tmp_path / "run")
    file = path / "rollouts" / "step_000001.parquet"
    data = file.read_bytes()
    file.write_bytes(data[:100] + bytes(400) + data[500:])
    run = read(path)
    assert [o.step for o in run.observations()] == [2]
    (said,) = run.gaps.texts
    assert "step_000001.parquet: must hold rollouts, undamaged - got " in said
    assert run.gaps.damaged == 1
    file.write_bytes(data[:-100])  # not even its columns can be seen
    cut = read(path)
    assert [o.step for o in cut.observations()] == [2]
    assert cut.damaged == 1
    assert "step_000001.parquet: must be whole Parquet" in cut.left_out[0]


def test_steps_whose_rollouts_are_gone_are_said(good, tmp_path: Path):
    path = good.run("Lockstep rollouts", tmp_path / "run")
    with RunDirectory(path).metrics_file.open("ab") as file:
        file.write(b"".join(b'{"step": %d}\n' % step for step in range(3, 20)))
    run = read(path)
    assert [o.step for o in run.observations()] == [1, 2]
    assert run.gaps.texts == ("no rollouts of step 3, 4, 5, 6, 7, 8, 9, 10 and 9 more: they are gone",)
    assert run.gaps.damaged == 1


def test_values_that_no_run_writes_name_the_file(good, tmp_path: Path):
    file = tmp_path / "r.parquet"
    rollouts.write(file, [good.lockstep_record(1)])
    written = pq.read_table(file)
    params = [{**row, "top_p": 1.5} for row in written["params"].to_pylist()]
    field = written.schema.field("params")
    changed = written.set_column(written.schema.names.index("params"), field, pa.array(params, field.type))
    pq.write_table(changed.replace_schema_metadata(SCHEMA.metadata), file)
    run = read(file)
    assert list(run.observations()) == []
    assert "r.parquet: must hold rollouts, undamaged - got sampling (top_p): out of range" in run.gaps.texts[0]
