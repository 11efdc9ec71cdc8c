"""TRL's tables of completions, with what its trainer logged for the step."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lockstep.adapters.foreign import trl
from lockstep.adapters.foreign.detection import read
from lockstep.errors import InputError


def table(path: Path, rows: list[dict], **columns: list) -> Path:
    """A file of completions with columns replaced or added, in a folder of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.Table.from_pylist([{**row, **{k: v[i] for k, v in columns.items()}} for i, row in enumerate(rows)]), path
    )
    return path


def state(path: Path, history: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"epoch": 1.0, "global_step": 20, "log_history": history}, indent=2))


def test_steps_are_texts(good, tmp_path: Path):
    run = read(good.run("TRL completions", tmp_path / "run"))
    observations = list(run.observations())
    assert [o.step for o in observations] == [10, 20]
    assert [s.text for s in observations[0].samples] == ["It is 2.", "It is 2.", "It is 3.", "It is 3."]
    assert len({s.id for o in observations for s in o.samples}) == 8
    assert all(len(s.token_ids) == 0 and s.sampler is None for s in observations[0].samples)
    assert run.version is None


def test_what_is_allowed(good, tmp_path: Path):
    allows = read(good.run("TRL completions", tmp_path / "run")).allows
    assert {permission.answer for permission in allows.values()} == {"no"}
    assert "no token ids, only texts" in str(allows["structure"])


def test_metrics_are_those_of_the_newest_state(good, tmp_path: Path):
    path = good.run("TRL completions", tmp_path / "run")
    state(path / "checkpoint-9" / "trainer_state.json", [{"step": 10, "kl": 9.0}])
    state(
        path / "checkpoint-20" / "trainer_state.json",
        [{"step": 10, "kl": 0.5, "note": "x", "ok": True}, {"step": 10, "entropy": 1}, {"step": 30, "kl": 1.0}],
    )
    run = read(path)
    first, second = run.observations()
    assert first.metrics == {"kl": 0.5, "entropy": 1.0}
    assert second.metrics == {}
    assert str(run.allows["objective"]).startswith("partly - metrics (entropy, kl) only: there are no token ids")


def test_a_damaged_state_costs_only_the_metrics(good, tmp_path: Path):
    path = good.run("TRL completions", tmp_path / "run")
    (path / "trainer_state.json").write_text('{"log_history": [{"step"')
    run = read(path)
    assert [dict(o.metrics) for o in run.observations()] == [{}, {}]
    assert run.gaps.texts[0].startswith("no metrics: ")
    state(path / "trainer_state.json", [{"kl": 1.0}])
    list(run.observations())
    assert "log_history[0].step is not as this format has it - got nothing" in run.gaps.texts[0]


def test_a_single_file_without_its_run(good, tmp_path: Path):
    file = table(tmp_path / "x.parquet", good.trl_rows(7))
    (observation,) = read(file).observations()
    assert (observation.step, len(observation.samples)) == (7, 4)


def test_what_log_extra_was_given(good, tmp_path: Path):
    file = table(
        tmp_path / "c.parquet", good.trl_rows(7), prompt_ids=[[1, 2]] * 4, completion_ids=[[3, 4]] * 4,
        sampling_per_token_logps=[[-0.5, -1.0]] * 4, old_per_token_logps=[[-0.5, float("nan")]] * 4,
    )  # fmt: skip
    run = read(file)
    (observation,) = run.observations()
    assert observation.samples[0].token_ids.tolist() == [3, 4]
    assert observation.samples[0].sampler.tolist() == [-0.5, -1.0]
    assert not observation.samples[0].comparable
    assert "no two series have the length of their tokens and finite numbers" in str(run.allows["mismatch"])


def test_a_table_of_several_steps_is_read_in_pieces(good, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trl, "ROWS", 3)
    file = table(tmp_path / "c.parquet", good.trl_rows(1) + good.trl_rows(2))
    assert [(o.step, len(o.samples)) for o in read(file).observations()] == [(1, 4), (2, 4)]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"step": ["a"] * 4}, "column step is not as this format has it - got text, expected an integer"),
        ({"step": [None, 1, 1, 1]}, "column step is not as this format has it - got nothing, expected an integer"),
        (
            {"completion": [1, 2, 3, 4]},
            "column completion is not as this format has it - got an integer, expected text",
        ),
        ({"completion_ids": [[-1]] * 4}, r"column completion_ids\[0\] is not as this format has it - got -1"),
    ],
)
def test_wrong_types_name_row_and_column(good, tmp_path: Path, columns: dict, words: str):
    file = table(tmp_path / "c.parquet", good.trl_rows(1), **columns)
    with pytest.raises(InputError, match=rf"c\.parquet \(row 1\): {words}"):
        list(read(file).observations())


def test_a_damaged_file_among_good_ones_is_said(good, tmp_path: Path):
    path = good.run("TRL completions", tmp_path / "run")
    file = path / "completions" / "completions_00010.parquet"
    file.write_bytes(file.read_bytes()[:-10])
    run = read(path)
    assert [o.step for o in run.observations()] == [20]
    assert len(run.left_out) == 1
    assert "completions_00010.parquet: must be whole Parquet" in run.left_out[0]


def test_a_file_that_is_damaged_inside(good, tmp_path: Path):
    """The footer is whole, so the file is recognised; its pages are not."""
    file = table(tmp_path / "c.parquet", good.trl_rows(1))
    data = bytearray(file.read_bytes())
    data[4:200] = bytes(196)
    file.write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"c\.parquet: must be whole Parquet"):
        list(read(file).observations())
