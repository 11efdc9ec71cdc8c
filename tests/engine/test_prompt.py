"""Every form of a prompt, and what is none."""

from __future__ import annotations

import pytest

from lockstep.engine.prompt import encode_all
from lockstep.errors import InputError


@pytest.fixture
def tokenizer(llama):
    return llama.model.tokenizer


def ids(tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text))


USER = {"role": "user", "content": "ab"}


def test_a_string_is_one_user_message_to_a_chat_model(tokenizer):
    assert encode_all(tokenizer, "ab", chat=True) == [ids(tokenizer, "ab>")]
    assert encode_all(tokenizer, "ab", chat=False) == [ids(tokenizer, "ab")]


def test_a_string_is_itself_where_there_is_no_template(tokenizer):
    plain = type(tokenizer)(tokenizer._core, tokenizer.eos_ids)
    assert encode_all(plain, "ab", chat=True) == [ids(tokenizer, "ab")]


@pytest.mark.parametrize("chat", [True, False])
def test_messages_and_lists(tokenizer, chat):
    single = ids(tokenizer, "ab>")
    assert encode_all(tokenizer, USER, chat=chat) == [single]
    assert encode_all(tokenizer, [USER], chat=chat) == [single]
    assert encode_all(tokenizer, (USER, USER), chat=chat) == [ids(tokenizer, "abab>")]
    assert encode_all(tokenizer, [[USER], [USER]], chat=chat) == [single, single]
    assert encode_all(tokenizer, ["a", [USER]], chat=False) == [ids(tokenizer, "a"), single]


@pytest.mark.parametrize("bad", [[], (), [[]], [3], 7, [["ab"]], [USER, "ab", 3], None])
def test_anything_else_is_refused(tokenizer, bad):
    with pytest.raises(InputError, match=r" - got .*, expected "):
        encode_all(tokenizer, bad, chat=True)
