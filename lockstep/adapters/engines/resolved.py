"""Two words for engines as configurations that can be compared: which settings each has, defaults included.

In: specs, what the engines say of themselves once they run. Out: `Configurations`.

Names are those that either word gives. A side that does not name one has what its engine states; where it states
nothing the value is unknown, and a comparison is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lockstep.adapters.engines.client import CHOICES, Client
from lockstep.adapters.engines.spec import Spec
from lockstep.errors import InputError, message
from lockstep.models import Model
from lockstep.parity.observation import Statement
from lockstep.parity.qualify.difference import UNKNOWN, Difference, differences

WITH_CLIENT = frozenset({"engine", "openai", "vllm"})
"""Kinds around which there is a client, with settings of its own."""

CONSEQUENCES = frozenset({"cache_salt", "prefix_cache_reset", "sampling"})
"""What engines state that follows from other settings."""


@dataclass(frozen=True, slots=True)
class Configurations:
    """Resolved settings of OLD and NEW by name, with what both must share; `stated` is all that they say.

    `elsewhere`: names that neither word gives and that both state, with other values; they are not put back.
    """

    old: Mapping[str, object]
    new: Mapping[str, object]
    elsewhere: Mapping[str, tuple[object, object]]

    @property
    def differences(self) -> tuple[Difference, ...]:
        """Raises `InputError` for an unknown value, or a difference in what both must share."""
        return differences(self.old, self.new)

    @classmethod
    def of(
        cls, specs: tuple[Spec, Spec], said: tuple[Statement, Statement], shared: tuple[Mapping[str, object], ...]
    ) -> Configurations:
        """Of OLD and NEW, in this order; `shared`: what must be equal, as each side has it."""
        names = sorted({*specs[0].settings, *specs[1].settings})
        sides: list[dict[str, object]] = [
            {**common, **{name: _value(spec, one, name) for name in names}}
            for spec, one, common in zip(specs, said, shared, strict=True)
        ]
        stated = [one.settings for one in said]
        for name in names:
            if all(name in settings for settings in stated) and stated[0][name] == stated[1][name]:
                sides[1][name] = sides[0][name]  # `auto` and what it comes to are one setting
        elsewhere = {
            name: (stated[0][name], stated[1][name])
            for name in sorted(stated[0].keys() & stated[1].keys() - CONSEQUENCES - set(names))
            if stated[0][name] != stated[1][name]
        }
        return cls(sides[0], sides[1], elsewhere)


def put_back(spec: Spec, old: Mapping[str, object], kept: frozenset[str]) -> Spec:
    """The word for NEW with the settings `kept` at OLD's values."""
    values: dict[str, Any] = {name: old[name] for name in sorted(kept)}
    return replace(spec, settings={**spec.settings, **values})


def shared(model: Model, digest: str, prompts: object, seed: int) -> dict[str, object]:
    """What both sides must share. `digest`: of the weights; `prompts`: anything that decides them, plain."""
    file = model.path / "tokenizer.json"
    if not file.exists():
        raise InputError(
            message(f"model ({model.path})", "its tokenizer must be known", got="no tokenizer.json",
                    expected="one that both sides read", do="Give a whole Hugging Face directory")
        )  # fmt: skip
    tokenizer = hashlib.sha256(file.read_bytes()).hexdigest()
    # Prompts are plain text, so that no template is ever applied.
    return {"model": digest, "tokenizer": tokenizer, "chat_template": None, "prompts": prompts, "seed": seed}


def _value(spec: Spec, said: Statement, name: str) -> object:
    if name in spec.settings:
        return spec.settings[name]
    if name in CHOICES and spec.kind in WITH_CLIENT:
        return getattr(Client(), name)
    return said.settings.get(name, UNKNOWN)
