"""Checks of answers, by name. Each says in its docstring what a pass guarantees.

In: a task and a completion's text. Out: a `Verdict`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from lockstep.checks.exact import Exact
from lockstep.checks.last_integer import LastInteger
from lockstep.core import Check
from lockstep.errors import InputError, message

__all__ = ["CHECKS", "Exact", "LastInteger", "find"]

CHECKS: Mapping[str, Check] = MappingProxyType({"exact": Exact(), "last_integer": LastInteger()})


def find(name: str) -> Check:
    """The check called `name`. Raises `InputError` for a name that is not in the table."""
    if name not in CHECKS:
        raise InputError(
            message(f"check ({name})", "unknown check", got=name, expected=" or ".join(CHECKS), do="Name one of these")
        )
    return CHECKS[name]
