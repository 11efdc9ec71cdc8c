"""Text to token ids and back, and chat messages to text: the model's own `tokenizer.json` and chat template.

In: an HF directory. Out: a `Tokenizer` that agrees with `transformers.AutoTokenizer`, without torch or transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import tokenizers
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lockstep.core import Message
from lockstep.errors import InputError, ModelError, StageError, boundary, message
from lockstep.models.directory import read_json

_HALF = "\ufffd"  # what decoding puts where a UTF-8 character is not complete (or never was one)
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class Tokenizer:
    """Encode, decode, render. Immutable; one object may serve many threads.

    `eos_ids` are the ids that end a completion: those of generation_config.json, else of config.json, else the
    tokenizer's own, as in transformers. `vocab_size` counts added tokens; the model's may be larger (padding).
    """

    __slots__ = ("_core", "_names", "_template", "eos_ids", "vocab_size")

    def __init__(
        self,
        core: tokenizers.Tokenizer,
        eos_ids: Sequence[int] = (),
        template: jinja2.Template | None = None,
        names: Mapping[str, str] | None = None,
    ) -> None:
        core.no_truncation()  # what a training script left in the file must not shorten prompts
        core.no_padding()
        self._core = core
        self._template = template
        self._names = dict(names or {})
        self.eos_ids = tuple(eos_ids)
        self.vocab_size = core.get_vocab_size(with_added_tokens=True)

    @classmethod
    def from_directory(cls, path: Path) -> Tokenizer:
        """Read `tokenizer.json` and what lies beside it. Raises `ModelError` for files that are absent or damaged."""
        file = path / "tokenizer.json"
        read_json(file)  # says what is wrong with the file itself; tokenizers only knows "line 1 column 1"
        try:
            with boundary(f"tokenizer ({file})"):
                core = tokenizers.Tokenizer.from_file(str(file))
        except StageError as failure:
            do = "Copy or pull the model again"
            raise ModelError(
                message(f"tokenizer ({file})", "it must load", got=failure.__cause__, expected="tokenizer.json", do=do)
            ) from failure
        settings = read_json(path / "tokenizer_config.json", required=False)
        specials = read_json(path / "special_tokens_map.json", required=False)
        names = {name: text for name in _SPECIAL if (text := _content(settings.get(name) or specials.get(name)))}
        return cls(core, _eos_ids(path, core, names.get("eos_token")), _chat_template(path, settings), names)

    @property
    def chats(self) -> bool:
        """Whether there is a chat template, so that messages can be rendered."""
        return self._template is not None

    def encode(self, text: str, *, add_special: bool = False) -> list[int]:
        """Token ids of `text`. Special tokens written out in it are recognised, as everywhere in the field.

        `add_special` also adds what the tokenizer puts around a text of its own accord (Llama's BOS).
        """
        try:
            text.encode()
        except UnicodeEncodeError as cause:
            do = "Read the text as UTF-8"
            raise InputError(
                message("text", "it must be Unicode", got=cause, expected="no lone surrogates", do=do)
            ) from None
        return self._core.encode(text, add_special_tokens=add_special).ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of `ids`; ids that no token has (a padded vocabulary) say nothing. Raises `InputError` below 0."""
        numbers = [int(i) for i in ids]
        for number in numbers:
            if not 0 <= number < 2**32:
                do = "Pass ids that the model drew"
                raise InputError(
                    message("token id", "out of range", got=number, expected=f"0 to {self.vocab_size - 1}", do=do)
                )
        return self._core.decode(numbers, skip_special_tokens=skip_special)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The text of a conversation under the model's chat template, ending where the assistant begins.

        Raises `InputError` if there is no template, a message is malformed, or the template refuses the conversation.
        """
        if self._template is None:
            raise _unusable("the model has no chat template", f"{len(messages)} messages", "a plain string")
        plain = [_message(i, item) for i, item in enumerate(messages)]
        if not plain:
            raise _unusable("a conversation has messages", "none", "at least one")
        context = {**self._names, "add_generation_prompt": add_generation_prompt, "tools": None, "documents": None}
        try:
            with boundary("chat template"):
                return self._template.render(messages=plain, **context)
        except StageError as refused:
            raise _unusable("the chat template refused it", refused.__cause__, "a conversation it accepts") from refused

    def encode_prompt(self, prompt: str | Sequence[Message]) -> list[int]:
        """Ids of a prompt: messages through the template, a string as it is (with BOS where the tokenizer adds one)."""
        if isinstance(prompt, str):
            return self.encode(prompt, add_special=True)
        return self.encode(self.render(prompt))  # the template writes BOS itself

    def stream(self, *, skip_special: bool = True) -> TokenStream:
        """A detokenizer for one completion."""
        return TokenStream(self, skip_special)


class TokenStream:
    """Text of a completion while its tokens arrive; all pieces joined are `decode` of all ids.

        ids   ...  [_context : _shown]  [_shown : ]
                   text already given   not yet whole characters

    Only the ids from `_context` on are decoded again, as a decoder may treat the first token of a text differently.
    """

    __slots__ = ("_context", "_ids", "_shown", "_skip", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special
        self._ids: list[int] = []
        self._context = 0
        self._shown = 0

    def push(self, token_id: int) -> str:
        """The new whole characters; empty while a character is incomplete."""
        self._ids.append(token_id)
        return self._advance(whole=True)

    def flush(self) -> str:
        """What is left at the end of the completion; an incomplete character comes out as U+FFFD."""
        return self._advance(whole=False)

    def _advance(self, *, whole: bool) -> str:
        before = self._decode(self._ids[self._context : self._shown])
        text = self._decode(self._ids[self._context :])
        if len(text) <= len(before) or (whole and text.endswith(_HALF)):
            return ""
        self._context, self._shown = self._shown, len(self._ids)
        return text[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special=self._skip)


def _eos_ids(path: Path, core: tokenizers.Tokenizer, eos_token: str | None) -> tuple[int, ...]:
    for name in ("generation_config.json", "config.json"):
        value = read_json(path / name, required=False).get("eos_token_id")
        if value is None or value == []:
            continue
        ids: list[Any] = value if isinstance(value, list) else [value]
        if any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in ids):
            do = f"Mend eos_token_id in {name}"
            raise ModelError(
                message(f"model ({path / name})", "eos_token_id", got=value, expected="an id or a list of ids", do=do)
            )
        return tuple(ids)
    own = core.token_to_id(eos_token) if eos_token else None
    return () if own is None else (own,)


def _content(token: Any) -> str | None:
    """A special token is stored as its text, or as an object with the text inside."""
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) else None


def _chat_template(path: Path, settings: Mapping[str, Any]) -> jinja2.Template | None:
    file, source = path / "chat_template.jinja", settings.get("chat_template")
    try:
        if file.exists():
            source = file.read_text(encoding="utf-8")
        if isinstance(source, list):  # several named ones
            source = {item["name"]: item["template"] for item in source}.get("default")
        return None if source is None else _environment().from_string(source)
    except (OSError, ValueError, TypeError, KeyError, jinja2.TemplateError) as cause:
        do = "Mend the template, or copy the model again"
        raise ModelError(
            message(f"chat template ({path})", "it must compile", got=cause, expected="a Jinja template", do=do)
        ) from None


def _environment() -> ImmutableSandboxedEnvironment:
    """Sandboxed, and set up as templates on the hub expect. They are foreign code."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's part in some templates; here it only renders its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(value: Any, indent: int | None = None, **options: Any) -> str:
    """Jinja's own escapes HTML; transformers' does not."""
    return json.dumps(value, indent=indent, **{"ensure_ascii": False, **options})


def _raise(text: str) -> NoReturn:
    raise jinja2.TemplateError(text)


def _message(index: int, item: Any) -> dict[str, str]:
    if not isinstance(item, Mapping) or not all(isinstance(item.get(key), str) for key in ("role", "content")):
        raise _unusable(f"message {index} must have role and content", repr(item), "two strings")
    return dict(item)


def _unusable(rule: str, got: object, expected: str) -> InputError:
    return InputError(message("conversation", rule, got=got, expected=expected, do="Change the prompt"))
