"""Words for engines as configurations: what a side does not name is what its engine states, and nothing is guessed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lockstep.adapters.engines.resolved import Configurations, put_back, shared
from lockstep.adapters.engines.spec import parse
from lockstep.errors import InputError
from lockstep.models import Model
from lockstep.parity.observation import Statement

COMMON = {"model": "m", "tokenizer": "t", "chat_template": None, "prompts": [1], "seed": 0}


def compared(old: str, new: str, said_old: dict[str, object], said_new: dict[str, object], **changed: Any):
    said = Statement("old", said_old), Statement("new", said_new)
    return Configurations.of((parse(old), parse(new)), said, (COMMON, {**COMMON, **changed}))


def listed(found: Configurations) -> list[tuple[str, object, object]]:
    return [(one.name, one.old, one.new) for one in found.differences]


def test_a_setting_of_both_words_is_compared_as_it_stands() -> None:
    assert listed(compared("vllm:m,seats=8", "vllm:m,seats=9", {}, {})) == [("seats", 8, 9)]
    assert listed(compared("vllm:m,seats=8", "vllm:m,seats=8", {}, {})) == []


@pytest.mark.parametrize("side", [0, 1])
def test_a_default_is_what_the_engine_states(side: int) -> None:
    words = ["vllm:m", "vllm:m"]
    words[1 - side] = "vllm:m,logprobs_mode=processed_logprobs"
    said: list[dict[str, object]] = [{"logprobs_mode": "processed_logprobs"}] * 2
    said[side] = {"logprobs_mode": "raw_logprobs"}
    values = ["processed_logprobs", "processed_logprobs"]
    values[side] = "raw_logprobs"
    assert listed(compared(words[0], words[1], said[0], said[1])) == [("logprobs_mode", *values)]


@pytest.mark.parametrize(
    ("old", "new", "silent"), [("vllm:m", "vllm:m,seats=8", "OLD"), ("vllm:m,seats=8", "vllm:m", "NEW")]
)
def test_a_default_that_nobody_states_is_refused(old: str, new: str, silent: str) -> None:
    found = compared(old, new, {}, {})
    with pytest.raises(InputError, match=rf"settings \(seats\).*no seats of {silent}"):
        _ = found.differences


def test_the_other_side_is_never_taken_for_a_default() -> None:
    found = compared("vllm:m,seats=8", "vllm:m", {"seats": 8}, {})
    with pytest.raises(InputError, match="no seats of NEW"):
        _ = found.differences


@pytest.mark.parametrize("kind", ["engine", "vllm", "openai"])
@pytest.mark.parametrize(
    ("name", "default", "other"), [("prefix_cache", "reset", "keep"), ("weights", "reload", "lost")]
)
def test_defaults_of_the_client_are_known(kind: str, name: str, default: str, other: str) -> None:
    assert listed(compared(f"{kind}:m", f"{kind}:m,{name}={other}", {}, {})) == [(name, default, other)]
    assert listed(compared(f"{kind}:m", f"{kind}:m,{name}={default}", {}, {})) == []


@pytest.mark.parametrize("kind", ["trainer", "transformers"])
def test_what_has_no_client_has_no_prefix_cache_either(kind: str) -> None:
    found = compared(f"{kind}:m", "engine:m,prefix_cache=keep", {}, {})
    with pytest.raises(InputError, match="no prefix_cache of OLD"):
        _ = found.differences


def test_two_words_that_come_to_the_same_do_not_differ() -> None:
    stated: dict[str, object] = {"dtype": "bfloat16"}
    assert listed(compared("vllm:m,dtype=auto", "vllm:m,dtype=bfloat16", stated, stated)) == []
    assert listed(compared("vllm:m,dtype=auto", "vllm:m,dtype=float32", stated, {"dtype": "float32"})) == [
        ("dtype", "auto", "float32")
    ]


def test_a_consequence_of_another_setting_is_no_difference() -> None:
    found = compared(
        "engine:m,head_dtype=model,dtype=bfloat16", "engine:m,head_dtype=model,dtype=float32",
        {"head_dtype": "bfloat16", "dtype": "bfloat16"}, {"head_dtype": "float32", "dtype": "float32"},
    )  # fmt: skip
    assert listed(found) == [("dtype", "bfloat16", "float32")]


def test_what_both_state_and_nobody_names_is_told_and_not_put_back() -> None:
    said: tuple[dict[str, object], ...] = (
        {"block_size": 128, "quantization": None, "cache_salt": "none", "only_old": 1},
        {"block_size": 16, "quantization": None, "cache_salt": "per_version", "sampling": {"top_k": 20}},
    )
    found = compared("vllm:m", "engine:m", *said)
    assert listed(found) == []
    assert found.elsewhere == {"block_size": (128, 16)}


@pytest.mark.parametrize("name", ["model", "tokenizer", "prompts", "seed", "chat_template"])
def test_what_must_be_shared_may_not_differ(name: str) -> None:
    found = compared("vllm:m", "vllm:m", {}, {}, **{name: "another"})
    with pytest.raises(InputError, match=rf"baseline \({name}\)"):
        _ = found.differences


def test_settings_are_put_back_at_the_values_of_old() -> None:
    new = parse("engine:m,dtype=float32,page_size=32")
    old: dict[str, object] = {"dtype": "bfloat16", "head_dtype": "float32", "page_size": 16}
    assert put_back(new, old, frozenset()) == new
    assert str(put_back(new, old, frozenset({"dtype"}))) == "engine:m,dtype=bfloat16,page_size=32"
    back = put_back(new, old, frozenset({"page_size", "head_dtype"}))
    assert back.settings == {"dtype": "float32", "page_size": 16, "head_dtype": "float32"}
    assert new.settings == {"dtype": "float32", "page_size": 32}, "the word itself is left as it was"


def _model(path: Path) -> Model:
    return cast(Model, SimpleNamespace(path=path))


def test_the_tokenizer_is_shared_by_its_content(tmp_path: Path) -> None:
    for name, text in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(text)
    one, same, other = (shared(_model(tmp_path / name), "d", [1], 3) for name in "abc")
    assert one == same != other
    assert one.keys() == COMMON.keys()
    assert (one["model"], one["prompts"], one["seed"], len(str(one["tokenizer"]))) == ("d", [1], 3, 64)


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        shared(_model(tmp_path), "d", [1], 0)
