"""Saved responses of an OpenAI-compatible server, however they were wrapped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lockstep.adapters.foreign import responses
from lockstep.adapters.foreign.detection import detect, read
from lockstep.errors import InputError

ALL = {"temperature": 0.7, "top_p": 0.9, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}


def batched(body: dict[str, Any] | None, name: str = "request-1", error: object = None) -> dict[str, Any]:
    """A line of a batch's output."""
    response = {"status_code": 200 if body else 500, "request_id": "r", "body": body}
    return {"id": f"vllm-{name}", "custom_id": name, "response": response, "error": error}


def ids(path: Path) -> list[str]:
    return [sample.id for observation in read(path).observations() for sample in observation.samples]


def test_lines_are_responses(good, tmp_path: Path):
    run = read(good.run("OpenAI-compatible responses", tmp_path / "run"))
    (observation,) = run.observations()
    assert [s.id for s in observation.samples] == ["a/0", "b/0", "c/0"]
    assert run.version == "vllm-0.32.0-tp1-0a1b2c"
    assert observation.engine.settings == {}


def test_a_document_of_one_response_or_of_many(good, tmp_path: Path):
    for value, expected in ((good.chat("x"), ["x/0"]), ([good.chat("x"), good.completion("y")], ["x/0", "y/0"])):
        for indent in (None, 2):
            (tmp_path / "r.json").write_text(json.dumps(value, indent=indent))
            assert ids(tmp_path / "r.json") == expected


def test_the_output_of_a_batch(good, tmp_path: Path):
    file = good.lines(tmp_path / "out.jsonl", [batched(None, "r0", {"code": 1}), batched(good.chat(), "r1")])
    run = read(file)
    (observation,) = run.observations()
    assert [s.id for s in observation.samples] == ["r1/0"]
    assert run.gaps.texts == (f"{file} (line 1): the request failed, there are no choices",)


def test_requests_beside_their_responses(good, tmp_path: Path):
    pairs = [{"request": {**ALL, "seed": 3, "model": "m"}, "response": good.completion(str(at))} for at in range(2)]
    (observation,) = read(good.lines(tmp_path / "r.jsonl", pairs)).observations()
    params = observation.samples[0].params
    assert params is not None
    assert (params.temperature, params.top_p, params.top_k, params.seed) == (0.7, 0.9, 0, 3)
    assert observation.engine.settings == {**ALL, "seed": 3}


def test_settings_are_those_that_all_requests_name(good, tmp_path: Path):
    pairs = [
        {"request": {"temperature": 0.7, "top_p": 0.5 + at / 4}, "response": good.completion(str(at))}
        for at in range(2)
    ]
    (observation,) = read(good.lines(tmp_path / "r.jsonl", pairs)).observations()
    assert observation.engine.settings == {"temperature": 0.7}
    assert observation.samples[0].params is None


def test_many_responses_come_in_pieces(good, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(responses, "BATCH", 2)
    file = good.lines(tmp_path / "r.jsonl", [good.completion(str(at)) for at in range(5)])
    assert [(o.step, len(o.samples)) for o in read(file).observations()] == [(1, 2), (2, 2), (3, 1)]


def test_files_in_the_order_of_their_numbers(good, tmp_path: Path):
    for at in (10, 9, 1):
        (tmp_path / f"{at}.json").write_text(json.dumps(good.completion(str(at))))
    assert ids(tmp_path) == ["1/0", "9/0", "10/0"]


def test_tokens_in_tokens_out(good, tmp_path: Path):
    """/inference/v1/generate: no object, no model, no text."""
    content = [{"token": f"token_id:{i}", "logprob": -0.5, "top_logprobs": []} for i in (8, 2)]
    body = {
        "request_id": "g", "prompt_logprobs": None, "kv_transfer_params": None,
        "choices": [{"index": 0, "logprobs": {"content": content}, "finish_reason": "stop", "token_ids": [8, 2]}],
    }  # fmt: skip
    (observation,) = read(good.lines(tmp_path / "g.jsonl", [body])).observations()
    (sample,) = observation.samples
    assert (sample.id, sample.token_ids.tolist(), sample.sampler.tolist()) == ("g/0", [8, 2], [-0.5, -0.5])
    assert sample.text is None


def test_several_choices_share_their_request(good, tmp_path: Path):
    body = good.completion("a")
    body["choices"] = [{**body["choices"][0], "index": at} for at in range(3)]
    (observation,) = read(good.lines(tmp_path / "r.jsonl", [body])).observations()
    assert [s.id for s in observation.samples] == ["a/0", "a/1", "a/2"]
    assert {s.group for s in observation.samples} == {"a"}
    assert {s.num_cached for s in observation.samples} == {None}


def test_pieces_of_a_stream_are_named(good, tmp_path: Path):
    chunk = {
        "id": "x",
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": {"content": "4"}, "finish_reason": None}],
    }
    with pytest.raises(InputError, match=r"pieces of a streamed response \(save the whole one\)"):
        detect(good.lines(tmp_path / "r.jsonl", [chunk]))


def test_questions_with_choices_are_no_responses(good, tmp_path: Path):
    questions = [
        {"question": "2+2?", "choices": ["3", "4"], "answer": 1},
        {"choices": [{"text": "3"}]},
        {"choices": []},
    ]
    with pytest.raises(InputError, match="JSON, keys question, choices, answer"):
        detect(good.lines(tmp_path / "q.jsonl", questions))


def test_what_is_allowed(good, tmp_path: Path):
    allows = read(good.run("OpenAI-compatible responses", tmp_path / "run")).allows
    assert allows["structure"].answer == "yes"
    assert allows["mismatch"].answer == "given a reference"
    assert allows["statements"].answer == "no"
    assert allows["cache"].why == "what came from the prefix cache is said"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"choices": [3]}, r"column choices\[0\] is an object of JSON - got an integer"),
        ({"choices": [], "usage": 3}, "column usage is an object of JSON - got an integer"),
        ({"choices": [], "id": 3}, "column id .* got an integer, expected text"),
        (
            [{"choices": []}, {"choices": [{"index": "0"}]}],
            r"column choices\[0\]\.index .* got text, expected an integer",
        ),
        ({"response": {"choices": []}, "request": {"temperature": "hot"}}, r"column request\.temperature .* got text"),
        ({"choices": [], "prompt_logprobs": [None, 3]}, r"column prompt_logprobs\[1\] is an object of JSON"),
    ],
)
def test_what_is_wrong_names_line_and_column(good, tmp_path: Path, value: Any, words: str):
    file = good.lines(tmp_path / "r.jsonl", [good.completion(), value])
    with pytest.raises(InputError, match=rf"r\.jsonl \(line 2\): {words}"):
        list(read(file).observations())
