"""One choice: which tokens it has, by which of the ways a server has to say so, and their logprobs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lockstep.adapters.foreign.choice import Response, sample
from lockstep.adapters.foreign.gaps import Gaps
from lockstep.adapters.foreign.row import Row
from lockstep.errors import InputError
from lockstep.parity.observation import Sample


def of(body: dict[str, Any]) -> tuple[Sample, tuple[str, ...]]:
    """The sample of the first choice of a body, and what it lacks."""
    row, gaps = Row("f (line 1)", body), Gaps()
    choices = row.rows("choices")
    assert choices
    return sample(choices[0], Response.of(row, None, None), gaps), gaps.texts


def logprobs(tokens: list[Any], values: list[Any]) -> dict[str, Any]:
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": [], "text_offset": []}


def test_a_completion_with_token_ids(good):
    found, gaps = of(good.completion("a"))
    assert found.prompt_ids.tolist() == [5, 6, 7]
    assert found.token_ids.tolist() == [8, 2]
    assert found.sampler.tolist() == [-0.25, -0.5]
    assert (found.text, found.finish_reason, found.num_cached, found.trainer) == (" 4", "stop", 2, None)
    assert gaps == ()


def test_a_chat_with_tokens_as_token_ids(good):
    found, _ = of(good.chat())
    assert found.token_ids.tolist() == [8, 2]
    assert found.sampler.tolist() == [-0.25, -9999.0]
    assert found.prompt_ids.tolist() == [5, 6, 7]
    assert found.text == "4"


def test_a_server_that_names_no_ids(good):
    found, gaps = of(good.completion(token_ids=None, prompt_token_ids=None))
    assert (len(found.token_ids), found.sampler) == (0, None)
    assert gaps == ("f (line 1): the tokens of choices[0] are texts, so their logprobs are left out",)


def test_a_token_that_only_looks_like_an_id_in_the_middle(good):
    found, gaps = of(good.completion(token_ids=None, logprobs=logprobs(["token_id:8", " x"], [-0.5, -1.0])))
    assert found.sampler is None
    assert len(gaps) == 1


def test_no_logprobs(good):
    for nothing in (None, {"content": None}, {"token_logprobs": None}):
        found, gaps = of(good.completion(logprobs=nothing))
        assert (found.token_ids.tolist(), found.sampler, gaps) == ([8, 2], None, ())


def test_a_logprob_that_is_null(good):
    found, _ = of(good.completion(logprobs=logprobs(["a", "b"], [None, -0.5])))
    assert np.isnan(found.sampler).tolist() == [True, False]


def test_numbers_that_json_calls_integers(good):
    content = [{"token": "token_id:8", "logprob": 0, "top_logprobs": []}]
    found, _ = of(good.chat(logprobs={"content": content}))
    assert found.sampler.tolist() == [0.0]


def test_the_prompt_that_echo_puts_before(good):
    echoed = logprobs(["a", "b", "c", " 4", ""], [None, -3.0, -4.0, -0.25, -0.5])
    found, _ = of(good.completion(logprobs=echoed))
    assert found.sampler.tolist() == [-0.25, -0.5]


def test_more_logprobs_than_tokens_without_echo_are_for_the_probes(good):
    longer = logprobs(["a", "b", "c", " 4", ""], [-1.0, -3.0, -4.0, -0.25, -0.5])
    found, _ = of(good.completion(logprobs=longer))
    assert (len(found.sampler), len(found.token_ids)) == (5, 2)
    one_more = logprobs(["a", " 4", ""], [None, -0.25, -0.5])
    assert len(of(good.completion(logprobs=one_more))[0].sampler) == 3


def test_prompt_logprobs_are_checked_and_not_compared(good):
    entry = {"17": {"logprob": -0.5, "rank": 1, "decoded_token": "a"}, "3": {"logprob": -1.5, "rank": 2}}
    found, _ = of(good.completion(prompt_logprobs=[None, entry, entry]))
    assert found.sampler.tolist() == [-0.25, -0.5]
    body = good.chat()
    body["prompt_logprobs"] = [None, {"17": {"logprob": "x"}}]
    with pytest.raises(InputError, match=r"column prompt_logprobs\[1\]\.17\.logprob .* got text, expected a number"):
        of(body)


def test_tool_calls_have_no_content(good):
    found, _ = of(good.chat(message={"role": "assistant", "content": None, "tool_calls": [{"id": "x"}]}))
    assert found.text is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"token_ids": [-1]}, r"column choices\[0\]\.token_ids\[0\] .* got -1"),
        ({"token_ids": None, "logprobs": logprobs(["token_id:x"], [-1.0])}, "without an id"),
        ({"token_ids": None, "logprobs": logprobs(["token_id:99999999999"], [-1.0])}, "at most 2147483647"),
        ({"token_ids": None, "logprobs": logprobs(["token_id:"], [-1.0])}, "without an id"),
        ({"token_ids": None, "logprobs": logprobs(["token_id:٣"], [-1.0])}, "without an id"),
        ({"logprobs": logprobs(["a"], [-1.0, -2.0])}, r"column choices\[0\]\.logprobs\.tokens .* a list of 2 texts"),
        ({"logprobs": {"content": [{"token": "a", "logprob": "x"}]}}, r"logprobs\.content\[0\]\.logprob .* got text"),
        ({"prompt_logprobs": 3}, r"column choices\[0\]\.prompt_logprobs .* got an integer, expected a list"),
        ({"logprobs": {"tokens": "ab", "token_logprobs": [-1.0, -2.0]}}, r"\.tokens .* got text, expected a list"),
        ({"finish_reason": 3}, r"column choices\[0\]\.finish_reason .* got an integer, expected text"),
    ],
)  # fmt: skip
def test_what_is_wrong_names_the_column(good, change: dict, words: str):
    with pytest.raises(InputError, match=rf"f \(line 1\): .*{words}"):
        of(good.completion(**change))
