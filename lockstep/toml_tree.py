"""Configuration as text and as nested tables: TOML read, merged, and written.

In: TOML files, `a.b=value` overrides, a resolved configuration. Out: plain dicts, TOML text.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lockstep.errors import ConfigError, message


def to_toml(config: BaseModel) -> str:
    """The resolved configuration as TOML; reading it gives an equal tree."""
    tree = config.model_dump(mode="json")
    lines = [f"{k} = {_literal(v)}" for k, v in tree.items() if not isinstance(v, dict)]
    for name, section in tree.items():
        if isinstance(section, dict):
            lines += ["", f"[{name}]", *(f"{k} = {_literal(v)}" for k, v in section.items())]
    return "\n".join(lines) + "\n"


def read_toml(file: Path) -> dict[str, Any]:
    """The tables of a file. Raises `ConfigError` if it cannot be read or is not TOML."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as cause:
        do = "Give the path of a TOML file, for example recipes/tiny.toml"
        raise ConfigError(
            message(f"config ({file})", "the file must be readable", got=cause, expected="a TOML file", do=do)
        ) from None
    except tomllib.TOMLDecodeError as cause:
        raise ConfigError(
            message(f"config ({file})", "the file must be TOML", got=cause, expected="key = value", do="Mend the line")
        ) from None


def read_override(override: str) -> dict[str, Any]:
    """The tables that `a.b=value` stands for. Raises `ConfigError` if it does not name a key and a value."""
    key, separator, text = override.partition("=")
    if not separator or not key or key.count(".") > 3:
        raise ConfigError(
            message(
                f"override ({override})", "an override names a key and a value", got=override,
                expected="key.path=value", do="Write for example optim.lr=1e-5",
            )
        )  # fmt: skip
    return _nest(key.split("."), _value(text))


def merge(into: dict[str, Any], tree: Mapping[str, Any]) -> None:
    """Put the keys of `tree` into `into`, table by table; `tree` wins."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


def _nest(keys: list[str], value: Any) -> dict[str, Any]:
    return {keys[0]: value if len(keys) == 1 else _nest(keys[1:], value)}


def _value(text: str) -> Any:
    """A TOML value; what is not one is a string, so that `model=smollm2` needs no quotes."""
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML escapes as JSON does, and DEL
    if isinstance(value, list):
        return "[" + ", ".join(_literal(v) for v in value) + "]"
    return repr(value)
