"""Lockstep's own runs, seen as anybody's: with both series, every bit of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lockstep.adapters.foreign.detection import read
from lockstep.config import RunConfig
from lockstep.errors import InputError
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


def test_a_refused_batch_is_no_step_of_the_run(good, tmp_path: Path):
    path = good.run("Lockstep rollouts", tmp_path / "run")
    rollouts.write(path / "parity" / "step_000003.parquet", [good.lockstep_record(3)])
    assert [o.step for o in read(path).observations()] == [1, 2]
    assert [o.step for o in read(path / "parity").observations()] == [3]


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


def test_a_damaged_file_is_an_error_that_names_it(good, tmp_path: Path):
    path = good.run("Lockstep rollouts", tmp_path / "run")
    file = path / "rollouts" / "step_000002.parquet"
    data = file.read_bytes()
    file.write_bytes(data[:100] + bytes(400) + data[500:])
    stream = read(path).observations()
    assert next(stream).step == 1
    with pytest.raises(InputError, match=r"step_000002\.parquet: must hold rollouts, undamaged - got "):
        next(stream)


def test_values_that_no_run_writes_name_the_file(good, tmp_path: Path):
    file = tmp_path / "r.parquet"
    rollouts.write(file, [good.lockstep_record(1)])
    written = pq.read_table(file)
    params = [{**row, "top_p": 1.5} for row in written["params"].to_pylist()]
    field = written.schema.field("params")
    changed = written.set_column(written.schema.names.index("params"), field, pa.array(params, field.type))
    pq.write_table(changed.replace_schema_metadata(SCHEMA.metadata), file)
    with pytest.raises(
        InputError, match=r"r\.parquet: must hold rollouts, undamaged - got sampling \(top_p\): out of range"
    ):
        list(read(file).observations())
