"""A word for an engine: which kind, which model or address, which settings.

    KIND:WHAT[,NAME=VALUE]...        vllm:smollm2,logprobs_mode=processed_logprobs,dtype=float32

In: text. Out: `Spec`. Values are JSON where that parses (`true`, `0.9`, `16`), and text otherwise.

>>> parse("vllm:smollm2,max_num_seqs=8,prefix_cache=salt").settings
{'max_num_seqs': 8, 'prefix_cache': 'salt'}
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from lockstep.errors import InputError, message

KINDS = {
    "engine": "Lockstep's engine",
    "trainer": "Lockstep's trainer",
    "transformers": "transformers: log softmax of the logits over the temperature, over all tokens",
    "vllm": "vLLM, in an environment and a process of its own",
    "openai": "an OpenAI-compatible endpoint that takes token ids and returns token logprobs",
}

Value = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Spec:
    """One side of an audit. `what`: a model's name or directory, or an address."""

    kind: str
    what: str
    settings: Mapping[str, Value] = field(default_factory=dict)

    def __str__(self) -> str:
        return ",".join([f"{self.kind}:{self.what}", *(f"{k}={_text(v)}" for k, v in self.settings.items())])


def parse(text: str) -> Spec:
    """Raises `InputError` for another kind, nothing behind the colon, or a setting that is no NAME=VALUE."""
    kind, colon, rest = text.partition(":")
    if kind not in KINDS or not colon:
        raise _bad(text, "it begins with a kind and a colon", kind or "nothing", ", ".join(KINDS))
    what, *pairs = rest.split(",")
    if not what.strip():
        raise _bad(text, "a model or an address follows the colon", "nothing", f"{kind}:smollm2 say")
    settings: dict[str, Value] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise _bad(text, "settings are NAME=VALUE", repr(pair), "dtype=float32 say")
        if name in settings:
            raise _bad(text, "a setting is given once", f"{name} twice", "one value")
        settings[name] = _value(value)
    return Spec(kind, what.strip(), settings)


def _value(text: str) -> Value:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, (str, int, float, bool)) or value is None else text


def _text(value: Value) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value)


def _bad(text: str, rule: str, got: str, expected: str) -> InputError:
    return InputError(message(f"engine ({text})", rule, got=got, expected=expected, do="See docs/auditor.md"))
