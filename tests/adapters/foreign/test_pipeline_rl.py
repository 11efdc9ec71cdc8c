"""PipelineRL's stream of texts: the engine's tokens and logprobs, a line a group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from lockstep.adapters.foreign.detection import read
from lockstep.errors import InputError
from lockstep.parity.observation import Sample


def only(good, tmp_path: Path, **change: Any) -> Sample:
    """The sample of one text with columns changed."""
    text = {**good.pipeline_text("g", 0), **change}
    (observation,) = read(good.lines(tmp_path / "0.jsonl", [[text]])).observations()
    return observation.samples[0]


def test_a_line_is_a_group(good, tmp_path: Path):
    observations = list(read(good.run("PipelineRL texts", tmp_path / "run")).observations())
    assert [o.step for o in observations] == [1, 2, 3]
    assert [s.id for s in observations[1].samples] == ["actor_1/0/0", "actor_1/1/0"]
    assert {s.group for s in observations[1].samples} == {"actor_1"}
    assert [o.engine.number for o in observations] == [64, 64, 64]


def test_tokens_and_the_engines_logprobs(good, tmp_path: Path):
    sample = only(good, tmp_path)
    assert sample.prompt_ids.tolist() == [5, 6, 7]
    assert sample.token_ids.tolist() == [8, 2]
    assert sample.sampler.tolist() == [-0.25, -0.5]
    assert (sample.trainer, sample.reference, sample.versions, sample.drawn_ids) == (None, None, None, None)
    assert sample.text == "4<eos>"
    assert sample.mask.tolist() == [True, True]


def test_a_reference_model_that_was_asked(good, tmp_path: Path):
    assert only(good, tmp_path, ref_logprobs=[-1.0, -2.0]).reference.tolist() == [-1.0, -2.0]


def test_null_is_a_number_that_was_not_finite(good, tmp_path: Path):
    file = tmp_path / "0.jsonl"
    text = {**good.pipeline_text("g", 0), "logprobs": [float("nan"), -0.5]}
    file.write_bytes(orjson.dumps([text]) + b"\n")
    assert b"null,-0.5" in file.read_bytes()
    (observation,) = read(file).observations()
    assert np.isnan(observation.samples[0].sampler).tolist() == [True, False]


def test_versions_of_a_group_that_began_at_several(good, tmp_path: Path):
    group = [good.pipeline_text("g", rollout, version=64 + rollout) for rollout in range(2)]
    (observation,) = read(good.lines(tmp_path / "0.jsonl", [group])).observations()
    assert observation.engine.number is None


def test_logprobs_of_another_number_than_the_labels_are_for_the_probes(good, tmp_path: Path):
    sample = only(good, tmp_path, logprobs=[-0.25])
    assert (len(sample.token_ids), len(sample.sampler)) == (2, 1)


def test_labels_that_are_not_the_inputs_are_what_was_drawn(good, tmp_path: Path):
    """The preprocessor replaces ids that the tokenizer does not know; labels keep what the engine drew."""
    sample = only(good, tmp_path, labels=[-100, -100, -100, 99, 2])
    assert sample.token_ids.tolist() == [8, 2]
    assert sample.drawn_ids.tolist() == [99, 2]


def test_tokens_between_two_answers_are_not_predicted(good, tmp_path: Path):
    sample = only(good, tmp_path, input_ids=[5, 8, 6, 9], labels=[-100, 8, -100, 9])
    assert sample.token_ids.tolist() == [8, 6, 9]
    assert sample.mask.tolist() == [True, False, True]
    assert sample.drawn_ids is None


def test_nothing_predicted(good, tmp_path: Path):
    sample = only(good, tmp_path, labels=[-100] * 5, logprobs=[])
    assert (len(sample.prompt_ids), len(sample.token_ids), sample.sampler) == (5, 0, None)


def test_a_text_without_tokens(good, tmp_path: Path):
    sample = only(good, tmp_path, input_ids=[], labels=[], logprobs=[])
    assert (len(sample.token_ids), sample.text) == (0, "4<eos>")


@pytest.mark.parametrize(("count", "text"), [(0, ""), (6, "4<eos>"), (99, None), (-1, None)])
def test_the_predicted_characters(good, tmp_path: Path, count: int, text: str | None):
    assert only(good, tmp_path, n_predicted=count).text == text


def test_one_text_a_line_as_save_samples_writes_them(good, tmp_path: Path):
    rows = [{**good.pipeline_text("g", rollout), "metadata": {}, "group_id": None} for rollout in range(2)]
    observations = list(read(good.lines(tmp_path / "s.jsonl", rows)).observations())
    assert [[s.id for s in o.samples] for o in observations] == [["1/0"], ["2/0"]]
    assert observations[0].engine.number is None


def test_the_actors_stream_is_preferred_to_its_evaluations(good, tmp_path: Path):
    path = good.run("PipelineRL texts", tmp_path / "run")
    good.lines(path / "streams" / "actor_test" / "0" / "0" / "0.jsonl", [[good.pipeline_text("test", 0)]])
    good.lines(path / "streams" / "stats" / "0" / "0" / "0.jsonl", [{"reward": 1.0}])
    assert all(o.samples[0].group.startswith("actor_") for o in read(path).observations())
    (observation,) = read(path / "streams" / "actor_test").observations()
    assert observation.samples[0].group == "test"


def test_topics_that_nobody_can_choose_between(good, tmp_path: Path):
    for topic in ("a", "b"):
        good.lines(tmp_path / "streams" / topic / "0" / "0" / "0.jsonl", [[good.pipeline_text("g", 0)]])
    with pytest.raises(InputError, match="holds one stream - got the topics a, b, expected one"):
        read(tmp_path)


def test_a_stream_that_is_being_written(good, tmp_path: Path):
    path = good.run("PipelineRL texts", tmp_path / "run")
    file = path / "streams" / "actor" / "0" / "0" / "0.jsonl"
    file.write_bytes(file.read_bytes()[:-100])
    run = read(path)
    assert [o.step for o in run.observations()] == [1, 2]
    assert "0.jsonl (line 3): the last line is cut off" in run.gaps.texts[0]


def test_what_is_allowed(good, tmp_path: Path):
    allows = read(good.run("PipelineRL texts", tmp_path / "run")).allows
    assert str(allows["statements"]) == "partly - the engine says number"
    assert allows["structure"].answer == "yes"
    assert allows["mismatch"].answer == "given a reference"
    assert "only their means are logged" in allows["mismatch"].why
    assert allows["objective"].answer == "no"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": None}, r"column \[1\]\.labels .* got nothing, expected a label for each of input_ids"),
        ({"labels": [-100, 2]}, r"column \[1\]\.input_ids .* lengths input_ids 5, labels 2"),
        ({"labels": [-101] * 5}, r"column \[1\]\.labels\[0\] .* got -101, expected a token id, -100 to"),
        ({"logprobs": 0.5}, r"column \[1\]\.logprobs .* got a number, expected a list of numbers"),
        ({"group_id": 3}, r"column \[1\]\.group_id .* got an integer, expected text"),
        (
            {"metadata": {"model_version": "x"}},
            r"column \[1\]\.metadata\.model_version .* got text, expected an integer",
        ),
    ],
)
def test_what_is_wrong_names_line_and_column(good, tmp_path: Path, change: dict, words: str):
    group = [good.pipeline_text("g", 0), {**good.pipeline_text("g", 1), **change}]
    file = good.lines(tmp_path / "0.jsonl", [[good.pipeline_text("f", 0)], group])
    with pytest.raises(InputError, match=rf"0\.jsonl \(line 2\): {words}"):
        list(read(file).observations())
