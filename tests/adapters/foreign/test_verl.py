"""verl's rollout JSONL: texts, and what a user has added to them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lockstep.adapters.foreign.detection import detect, read
from lockstep.errors import InputError


def test_steps_come_in_their_order(good, tmp_path: Path):
    run = read(good.run("verl rollouts", tmp_path / "run"))
    observations = list(run.observations())
    assert [o.step for o in observations] == [9, 10]
    assert [s.id for s in observations[0].samples] == ["9-0", "9-1", "9-2"]
    assert [s.text for s in observations[1].samples] == ["0", "1", "2"]
    assert all(len(s.token_ids) == 0 and s.sampler is None and s.trainer is None for s in observations[0].samples)


def test_what_is_allowed(good, tmp_path: Path):
    allows = read(good.run("verl rollouts", tmp_path / "run")).allows
    assert {kind: permission.answer for kind, permission in allows.items()} == dict.fromkeys(allows, "no")
    assert str(allows["structure"]) == "no - there are no token ids, only texts"
    assert str(allows["mismatch"]).startswith(
        "no - there are no token ids, sampler logprobs or trainer logprobs here; verl keeps ids and rollout_log_probs"
    )


def test_the_v1_trainer_names_groups(good, tmp_path: Path):
    rows = [{**row, "uid": f"p_1_{at}_0"} for at, row in enumerate(good.verl_rows(3))]
    for row in rows:
        del row["request_id"]
    (observation,) = read(good.lines(tmp_path / "3.jsonl", rows)).observations()
    assert [s.id for s in observation.samples] == ["p_1_0_0", "p_1_1_0", "p_1_2_0"]
    assert {s.group for s in observation.samples} == {"p_1"}


def test_a_uid_of_another_form_is_a_group(good, tmp_path: Path):
    rows = [{**row, "uid": "0a1b-prompt_x"} for row in good.verl_rows(3)]
    (observation,) = read(good.lines(tmp_path / "3.jsonl", rows)).observations()
    assert {s.group for s in observation.samples} == {"0a1b-prompt_x"}
    assert len({s.id for s in observation.samples}) == 3


def test_before_0_6_there_was_no_ground_truth(good, tmp_path: Path):
    rows = [{k: row[k] for k in ("input", "output", "score", "step")} for row in good.verl_rows(1)]
    (observation,) = read(good.lines(tmp_path / "1.jsonl", rows)).observations()
    assert [s.id for s in observation.samples] == ["1/0", "1/1", "1/2"]


def test_columns_that_a_user_has_added(good, tmp_path: Path):
    rows = [
        {**row, "prompts": [1, 2], "responses": [3, 4], "rollout_log_probs": [-0.5, -1.0], "old_log_probs": [-0.5, -2]}
        for row in good.verl_rows(1)
    ]
    run = read(good.lines(tmp_path / "1.jsonl", rows))
    (observation,) = run.observations()
    assert len(observation.comparable) == 3
    assert observation.samples[0].trainer.tolist() == [-0.5, -2.0]
    assert run.allows["mismatch"].answer == "yes"


def test_rollout_log_probs_without_ids_are_said_to_be_left_out(good, tmp_path: Path):
    rows = [{**row, "rollout_log_probs": [-0.5, -1.0]} for row in good.verl_rows(1)]
    run = read(good.lines(tmp_path / "1.jsonl", rows))
    (observation,) = run.observations()
    assert observation.samples[0].sampler is None
    assert len(run.gaps.texts) == 3
    assert "(line 1): logprobs without responses belong to no tokens" in run.gaps.texts[0]


def test_scores_that_are_not_finite_hurt_nobody(good, tmp_path: Path):
    """verl writes with Python's json, so NaN stands in the file as such."""
    rows = [{**row, "score": float("nan")} for row in good.verl_rows(1)]
    file = good.lines(tmp_path / "1.jsonl", rows)
    assert "NaN" in file.read_text()
    assert len(next(iter(read(file).observations())).samples) == 3


def test_a_step_without_samples_is_an_empty_line(good, tmp_path: Path):
    good.run("verl rollouts", tmp_path / "run")
    (tmp_path / "run" / "11.jsonl").write_text("\n")
    assert [o.step for o in read(tmp_path / "run").observations()] == [9, 10]


def test_training_and_validation_are_two_runs(good, tmp_path: Path):
    for name in ("train", "val"):
        good.run("verl rollouts", tmp_path / name)
    with pytest.raises(InputError, match=r"holds one run - got files of 2 folders \(train, val\)"):
        read(tmp_path)
    assert detect(tmp_path / "val").name == "verl rollouts"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"step": None}, "column step is not as this format has it - got nothing, expected an integer"),
        ({"step": "3"}, "column step is not as this format has it - got text, expected an integer"),
        ({"output": 3}, "column output is not as this format has it - got an integer, expected text"),
        (
            {"responses": [1.5]},
            r"column responses\[0\] is not as this format has it - got a number, expected token ids",
        ),
    ],
)
def test_wrong_types_name_line_and_column(good, tmp_path: Path, change: dict, words: str):
    rows = good.verl_rows(1)
    rows[1].update(change)
    file = good.lines(tmp_path / "1.jsonl", rows)
    with pytest.raises(InputError, match=rf"1\.jsonl \(line 2\): {words}"):
        list(read(file).observations())


def test_damage_in_the_middle_names_the_line(good, tmp_path: Path):
    rows = [json.dumps(row) for row in good.verl_rows(1)]
    file = tmp_path / "1.jsonl"
    file.write_text("\n".join([rows[0], rows[1][:-9], rows[2], ""]))
    with pytest.raises(InputError, match=r"1\.jsonl \(line 2\): every line, or the file as a whole, is JSON"):
        list(read(file).observations())
