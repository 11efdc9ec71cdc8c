"""Configuration keys as options: `--optim.lr 1e-5`, `--optim.lr=1e-5` and `optim.lr=1e-5` are one.

In: the arguments of `lockstep train`. Out: the same with such options folded into `key=value`.
"""

from __future__ import annotations

from collections.abc import Sequence

from lockstep.config import RunConfig
from lockstep.errors import InputError, message


def fold(arguments: Sequence[str]) -> list[str]:
    """Fold `--key value` of configuration keys. Raises `InputError` for a key without a value."""
    out: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not _is_key(name):
            out.append(argument)
            continue
        given = value if equals else next(waiting, None)
        if given is None:
            raise InputError(
                message(
                    f"option (--{name})", "a key needs a value", got="nothing", expected=f"--{name} VALUE", do="Add it"
                )
            )
        out.append(f"{name.replace('-', '_')}={given}")
    return out


def _is_key(name: str) -> bool:
    """Dotted names are keys, known or not (the configuration answers a typo); undotted ones if they are at the top."""
    return "." in name or name.replace("-", "_") in RunConfig.model_fields
