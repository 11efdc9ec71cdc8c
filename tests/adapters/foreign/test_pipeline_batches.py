"""PipelineRL's micro batches: packed or padded, each sequence for itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lockstep.adapters.foreign.detection import read
from lockstep.errors import InputError


def only(good, tmp_path: Path, **change: Any):
    """The samples of one batch with columns changed."""
    (observation,) = read(good.lines(tmp_path / "0.jsonl", [{**good.pipeline_batch(), **change}])).observations()
    return observation.samples


def padded(good) -> dict[str, Any]:
    """The same two sequences side by side, padded to four."""
    return {
        **good.pipeline_batch(),
        "input_ids": [[5, 6, 8, 2], [5, 9, 2, 0]], "attention_mask": [[1, 1, 1, 1], [1, 1, 1, 0]],
        "labels": [[-100, -100, 8, 2], [-100, 9, 2, -100]],
        "old_logprobs": [[0.0, 0.0, -0.25, -1.0], [0.0, -2.5, -0.25, 0.0]],
        "ref_logprobs": [[0.0, 0.0, -0.5, -1.0], [0.0, -2.0, -0.25, 0.0]],
        "is_packed": False, "seq_boundaries": None, "padding": 0,
    }  # fmt: skip


def test_packed_sequences_are_apart_and_padding_is_none(good, tmp_path: Path):
    first, second = only(good, tmp_path)
    assert first.prompt_ids.tolist() == [5, 6]
    assert first.token_ids.tolist() == [8, 2]
    assert first.sampler.tolist() == [-0.25, -1.0]
    assert first.reference.tolist() == [-0.5, -1.0]
    assert second.prompt_ids.tolist() == [5]
    assert second.token_ids.tolist() == [9, 2]
    assert second.sampler.tolist() == [-2.5, -0.25]
    assert (first.drawn_ids, first.trainer) == (None, None)


def test_padded_sequences_are_the_same(good, tmp_path: Path):
    packed, side_by_side = only(good, tmp_path / "a"), only(good, tmp_path / "b", **padded(good))
    for one, other in zip(packed, side_by_side, strict=True):
        for name in ("prompt_ids", "token_ids", "sampler", "reference"):
            assert getattr(one, name).tolist() == getattr(other, name).tolist()


def test_padding_on_the_left(good, tmp_path: Path):
    whole = padded(good)
    names = ("input_ids", "attention_mask", "labels", "old_logprobs", "ref_logprobs")
    turned = {name: [whole[name][1][-1:] + whole[name][1][:-1]] for name in names}
    (sample,) = only(good, tmp_path, **{**whole, **turned})
    assert sample.prompt_ids.tolist() == [5]
    assert sample.sampler.tolist() == [-2.5, -0.25]


def test_labels_that_are_not_the_inputs_are_what_was_drawn(good, tmp_path: Path):
    first, second = only(good, tmp_path, labels=[[-100, -100, 99, 2, -100, 9, 2, -100]])
    assert first.drawn_ids.tolist() == [99, 2]
    assert second.drawn_ids is None


def test_sentinels_carry_nothing(good, tmp_path: Path):
    run = read(good.run("PipelineRL micro batches", tmp_path / "run"))
    assert [(o.step, len(o.samples)) for o in run.observations()] == [(1, 2)]
    assert run.allows["objective"].answer == "partly"
    assert "the reference policy's logprobs only: there are no trainer logprobs" in run.allows["objective"].why


def test_a_run_with_both_streams_is_read_from_the_actor(good, tmp_path: Path):
    good.run("PipelineRL micro batches", tmp_path / "run")
    (tmp_path / "actor").mkdir()
    path = good.run("PipelineRL texts", tmp_path / "actor" / "run")
    (path / "streams" / "actor").rename(tmp_path / "run" / "streams" / "actor")
    run = read(tmp_path / "run")
    assert run.name == "PipelineRL texts"
    assert "1 files of PipelineRL micro batches (" in run.left_out[0]
    assert read(tmp_path / "run" / "streams" / "training_data").name == "PipelineRL micro batches"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seq_boundaries": [0, 4, 7, 16]}, r"column seq_boundaries .* got \[0, 4, 7, 16\], expected ascending"),
        ({"seq_boundaries": [4, 0, 8]}, "column seq_boundaries"),
        ({"seq_boundaries": [0, 8, 4, 8]}, "column seq_boundaries"),
        ({"seq_boundaries": None}, "column seq_boundaries .* got None"),
        ({"old_logprobs": [[0.0] * 7]}, r"column input_ids\[0\] .* old_logprobs\[0\] 7"),
        ({"old_logprobs": []}, "column old_logprobs .* got not as many lists as input_ids"),
        ({"old_logprobs": [None]}, r"column old_logprobs\[0\] .* got null, expected a list"),
        ({"labels": [["x"] * 8]}, r"column labels\[0\]\[0\] .* got text, expected token ids"),
        ({"input_ids": 3}, "column input_ids .* got no list, expected a list of lists"),
        ({"input_ids": [[1], [2]], "labels": [[1], [2]], "attention_mask": [[1], [1]], "old_logprobs": [[0], [0]],
          "ref_logprobs": [[0], [0]]}, "column input_ids .* got 2 lists, expected one list"),
    ],
)  # fmt: skip
def test_what_is_wrong_names_line_and_column(good, tmp_path: Path, change: dict, words: str):
    with pytest.raises(InputError, match=rf"0\.jsonl \(line 1\): {words}"):
        only(good, tmp_path, **change)
