"""prime-rl's token exports: both series of each token, the turns of a sequence apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lockstep.adapters.foreign.detection import read
from lockstep.errors import InputError


def only(good, tmp_path: Path, **change):
    """The samples of one exported sequence with columns changed."""
    row = {**good.prime_row(1, 0, 0), **change}
    (observation,) = read(good.lines(tmp_path / "rank_0.jsonl", [row])).observations()
    return observation.samples


def test_steps_and_ranks(good, tmp_path: Path):
    run = read(good.run("prime-rl token exports", tmp_path / "run"))
    observations = list(run.observations())
    assert run.version == "schema 1"
    assert [o.step for o in observations] == [9, 10]
    assert [s.id for s in observations[0].samples] == [
        f"9/{rank}/{index}/turn {turn}" for rank in (0, 1) for index in (0, 1) for turn in (0, 1)
    ]


def test_tokens_have_both_series_of_their_own(good, tmp_path: Path):
    first, second = only(good, tmp_path)
    assert first.prompt_ids.tolist() == [1, 17]
    assert first.token_ids.tolist() == [40, 41]
    assert first.sampler.tolist() == [-0.5, -1.25]
    assert first.trainer.tolist() == [-0.5, -1.5]
    assert second.prompt_ids.tolist() == [1, 17, 40, 41, 9]
    assert second.token_ids.tolist() == [42, 43, 2]
    assert second.mask.tolist() == [True, False, True]
    assert first.comparable
    assert first.params is None


def test_what_is_allowed(good, tmp_path: Path):
    allows = read(good.run("prime-rl token exports", tmp_path / "run")).allows
    assert allows["structure"].answer == allows["mismatch"].answer == "yes"
    assert "the policy's update is in the difference, too" in allows["mismatch"].why
    assert str(allows["semantics"]).startswith("given a reference - temperature and truncation are not said")


def test_null_is_a_number_that_was_not_finite(good, tmp_path: Path):
    trainer = good.prime_row(1, 0, 0)["trainer_logprobs"]
    first, second = only(good, tmp_path, trainer_logprobs=[*trainer[:3], None, *trainer[4:]])
    assert np.isnan(first.trainer).tolist() == [False, True]
    assert not first.comparable
    assert second.comparable


def test_tokens_of_a_frozen_model_are_no_draws_of_the_policy(good, tmp_path: Path):
    """prime-rl counts no mismatch for tokens that are only in the ce part of the loss: they have no logprobs."""
    weights = [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    (sample,) = only(good, tmp_path, rl_weights=weights, ce_weights=[1.0 - w for w in weights])
    assert sample.token_ids.tolist() == [40, 41]
    both = only(good, tmp_path, rl_weights=weights, ref_kl_weights=[0.0] * 5 + [0.5] * 3)
    assert [s.token_ids.tolist() for s in both] == [[40, 41], [42, 43, 2]]
    assert only(good, tmp_path, rl_weights=[0.0] * 8) == []


def test_what_the_loss_cuts_off_is_not_said_where_it_is_null(good, tmp_path: Path):
    samples = only(good, tmp_path, is_masked=[None] * 8)
    assert all(sample.mask.all() for sample in samples)


def test_the_first_version_wrote_all_steps_into_one_file(good, tmp_path: Path):
    for rank in (0, 1):
        rows = [{**good.prime_row(step, rank, 0), "training_mode": "rl", "rewards": [0.0] * 8} for step in (1, 2, 3)]
        good.lines(tmp_path / "token_exports" / f"rank_{rank}.jsonl", rows)
    observations = list(read(tmp_path).observations())
    assert [o.step for o in observations] == [1, 2, 3]
    assert [s.id for s in observations[1].samples] == [f"2/{rank}/0/turn {turn}" for rank in (0, 1) for turn in (0, 1)]


def test_a_rank_that_was_killed(good, tmp_path: Path):
    path = good.run("prime-rl token exports", tmp_path / "run")
    file = path / "token_exports" / "step_10" / "rank_1.jsonl"
    file.write_bytes(file.read_bytes()[:-30])
    run = read(path)
    assert [len(o.samples) for o in run.observations()] == [8, 6]
    assert len(run.gaps.texts) == 1
    assert "rank_1.jsonl (line 2): the last line is cut off after" in run.gaps.texts[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": 2}, "column schema_version is not as this format has it - got 2, expected 1"),
        ({"loss_mask": None}, "column loss_mask is not as this format has it - got nothing, expected a list"),
        ({"loss_mask": [True]}, "got lengths token_ids 8, loss_mask 1"),
        ({"trainer_logprobs": [-1.0]}, "got lengths .* trainer_logprobs 1, expected columns of one length"),
        ({"inference_logprobs": ["x"] * 8}, r"column inference_logprobs\[0\] .* got text, expected numbers"),
        ({"is_masked": [None] * 7 + [True]}, r"column is_masked\[0\] .* got null, expected true or false"),
        ({"step": 1.5}, "column step is not as this format has it - got a number, expected an integer"),
        ({"rank": None}, "column rank is not as this format has it - got nothing, expected an integer"),
        ({"token_ids": [1] * 7 + [2**31]}, r"column token_ids\[7\] .* got 2147483648"),
    ],
)
def test_what_is_wrong_names_line_and_column(good, tmp_path: Path, change: dict, words: str):
    rows = [good.prime_row(1, 0, 0), {**good.prime_row(1, 0, 1), **change}]
    file = good.lines(tmp_path / "rank_0.jsonl", rows)
    with pytest.raises(InputError, match=rf"rank_0\.jsonl \(line 2\): .*{words}"):
        list(read(file).observations())
