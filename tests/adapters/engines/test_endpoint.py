from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest

from lockstep.adapters.engines.audit import Audit
from lockstep.adapters.engines.endpoint import Endpoint
from lockstep.adapters.engines.native import NativeEngine, NativeTrainer
from lockstep.adapters.engines.workload import Workload
from lockstep.core import Request, SamplingParams
from lockstep.errors import InputError, StageError
from lockstep.parity.side import CannotAsk

PARAMS = SamplingParams(max_tokens=3, n=2, seed=5, top_p=0.9, temperature=0.7)
REQUEST = Request("r", (3, 4, 5), PARAMS)
CHOICE = {"token_ids": [7, 8], "logprobs": {"token_logprobs": [-0.5, None]}, "finish_reason": "length"}
MODELS = {"data": [{"id": "only"}]}


def answers(choices, seen=None):
    def answer(path, body):
        if path == "/models":
            return MODELS
        if seen is not None:
            seen.append(body)
        return {"choices": choices}

    return answer


def test_token_ids_go_out_and_token_ids_come_back(serving, publisher):
    seen = []
    endpoint = Endpoint(publisher, serving(answers([CHOICE, {**CHOICE, "prompt_token_ids": [3, 4]}], seen)), {})
    first, second = endpoint.sample([REQUEST])
    body = seen[0]
    assert (body["model"], body["prompt"], body["return_token_ids"]) == ("only", [3, 4, 5], True)
    assert (body["temperature"], body["top_p"], body["n"], body["seed"], body["top_k"]) == (0.7, 0.9, 2, 5, 0)
    assert first.id == "r/0" and first.token_ids.tolist() == [7, 8] and first.finish_reason == "length"
    assert first.sampler[0] == np.float32(-0.5) and np.isnan(first.sampler[1]), "a hole stays a hole"
    assert first.drawn_prompt_ids is None and second.drawn_prompt_ids.tolist() == [3, 4]
    assert endpoint.state().name == "endpoint only" and not endpoint.state().settings


@pytest.mark.parametrize(
    ("choices", "rule"),
    [
        ([CHOICE], "completions asked for"),
        (None, "completions asked for"),
        ([{**CHOICE, "token_ids": None}] * 2, "ids of the drawn tokens"),
        ([{**CHOICE, "token_ids": ["a"]}] * 2, "ids of the drawn tokens"),
        (["text", "text"], "ids of the drawn tokens"),
        ([{**CHOICE, "logprobs": None}] * 2, "logprobs of the drawn tokens"),
        ([{**CHOICE, "logprobs": {"token_logprobs": []}}] * 2, "logprobs of the drawn tokens"),
    ],
)
def test_an_endpoint_that_lacks_what_is_needed_is_refused_and_told_what(serving, publisher, choices, rule):
    with pytest.raises(InputError, match=rule) as refused:
        Endpoint(publisher, serving(answers(choices)), {}).sample([REQUEST])
    assert refused.value.exit_code == 2 and "lockstep doctor" in str(refused.value)


@pytest.mark.parametrize("said", [500, 404, b"<html>", b"[1]", b"", b"\xff"])
def test_nonsense_is_a_failure_of_the_endpoint(serving, publisher, said):
    address = serving(lambda path, body: said)
    with pytest.raises(StageError, match="it must answer"):
        Endpoint(publisher, address, {"model": "m"}).sample([REQUEST])


def test_one_that_hangs_is_given_up(serving, publisher):
    endpoint = Endpoint(publisher, serving(lambda path, body: None), {"model": "m", "timeout": 0.2})
    with pytest.raises(StageError, match=r"0\.2 s"):
        endpoint.sample([REQUEST])


def test_nobody_there(publisher):
    with pytest.raises(StageError, match="it must answer"):
        Endpoint(publisher, "http://127.0.0.1:9/v1", {})


@pytest.mark.parametrize(
    ("address", "settings"),
    [("127.0.0.1:8000", {}), ("ftp://x", {}), ("http://127.0.0.1:9/v1", {"temperature": 1})],
)
def test_addresses_and_settings_that_cannot_be_used(publisher, address, settings):
    with pytest.raises(InputError, match="not usable"):
        Endpoint(publisher, address, settings)


def test_two_models_need_a_name(serving, publisher):
    two = {"data": [{"id": "a"}, {"id": "b"}]}
    with pytest.raises(InputError, match="a, b"):
        Endpoint(publisher, serving(lambda path, body: two), {})


def test_what_it_cannot_do_it_says(serving, publisher):
    endpoint = Endpoint(publisher, serving(answers([])), {})
    assert endpoint.can == {"sample", "seeded"}
    for ask in (lambda: endpoint.score([]), lambda: endpoint.update(1), endpoint.reset):
        with pytest.raises(CannotAsk):
            ask()


def test_a_real_engine_behind_an_address_is_audited_like_any_other(serving, publisher):
    """Ours answers over HTTP; raw logprobs, as a default would have it, are named."""
    with ExitStack() as stack:
        engine = stack.enter_context(NativeEngine(publisher, {"dtype": "float32"}))
        scorer = stack.enter_context(NativeTrainer(publisher, {"dtype": "float32"}))

        def answer(path, body):
            if path == "/models":
                return MODELS
            fields = {name: body[name] for name in ("temperature", "max_tokens", "n", "seed", "ignore_eos")}
            drawn = engine.sample([Request(str(body["seed"]), tuple(body["prompt"]), SamplingParams(**fields))])
            plain = scorer.score([_at_one(sample) for sample in drawn])
            return {
                "choices": [
                    {"token_ids": s.token_ids.tolist(), "logprobs": {"token_logprobs": values.tolist()}}
                    for s, values in zip(drawn, plain, strict=True)
                ]
            }

        endpoint = Endpoint(publisher, serving(answer), {})
        params = SamplingParams(temperature=0.6, max_tokens=8, n=4, ignore_eos=True)
        audit = Audit(endpoint, scorer, publisher, Workload(params, prompts=3, steps=3))
        findings = list(audit.run())
    assert [finding.code for finding in findings] == ["SEM01"]
    assert audit.report("openai:x", "trainer:x", {}).facts["steps"] == 1, "its weights are not ours to change"
    assert audit.report("openai:x", "trainer:x", {}).breakdown is not None


def _at_one(sample):
    return replace(sample, params=replace(sample.params, temperature=1.0))
