"""A user's function by its path.

In: `package.module.function`, `package.module:function` or `file.py:function`. Out: the callable.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from lockstep.errors import InputError, StageError, boundary, message


def find(path: str) -> Callable[..., Any]:
    """The callable at `path`. Modules are looked for where Python looks, then in the working directory.

    Raises `InputError` for a module that is missing or raises, and for a name that is missing or cannot be called.
    """
    home, _, name = path.partition(":") if ":" in path else path.rpartition(".")
    if not home or not name:
        raise _refused(path, "a path names a module and a function", repr(path), "module.function or file.py:function")
    module = _module(path, home)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), n=1)
            do = f"Did you mean {near[0]}" if near else "Change task.reward"
            raise _refused(path, f"{home} has no {part}", part, "a name that is defined there", do)
        found = getattr(found, part)
    if not callable(found):
        raise _refused(path, "a reward is called", type(found).__name__, "a function")
    return found


def _module(path: str, home: str) -> ModuleType:
    try:
        with boundary(f"reward function ({path})"):
            return _from_file(Path(home)) if home.endswith(".py") else _by_name(home)
    except StageError as failure:
        cause = failure.__cause__
        got = f"{type(cause).__name__}: {cause}"
        raise _refused(path, f"{home} must be importable", got, "a module that imports without an error") from cause


def _by_name(home: str) -> ModuleType:
    try:
        return importlib.import_module(home)
    except ModuleNotFoundError as cause:
        here = str(Path.cwd())
        if here in sys.path or cause.name != home.partition(".")[0]:
            raise
        # An installed command does not look here, but this is where a user's own file is. Last, so as to hide nothing.
        sys.path.append(here)
        importlib.invalidate_caches()
        return importlib.import_module(home)


def _from_file(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None, f"{file} ends in .py"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _refused(path: str, rule: str, got: str, expected: str, do: str = "Change task.reward") -> InputError:
    return InputError(message(f"reward function ({path})", rule, got=got, expected=expected, do=do))
