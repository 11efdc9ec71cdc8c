"""`lockstep.parity` names what it always named, and costs nothing until it is asked."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import lockstep.parity

ROOT = Path(__file__).resolve().parents[2]


def heavy_after(code: str) -> str:
    """Which of the heavy modules a fresh interpreter holds after `code`."""
    report = f"import sys\n{code}\nprint([m for m in ('numpy', 'torch', 'pyarrow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", report], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_names_resolve_to_what_they_say() -> None:
    assert lockstep.parity.__all__ == dir(lockstep.parity) == ["FirstDifference", "ParityResult", "compare"]
    for name in lockstep.parity.__all__:
        assert getattr(lockstep.parity, name).__name__ == name


def test_no_module_takes_the_place_of_a_name() -> None:
    for module in pkgutil.iter_modules(lockstep.parity.__path__):
        assert module.name not in lockstep.parity.__all__, "importing the module would hide the name"
        importlib.import_module(f"lockstep.parity.{module.name}")
    assert callable(lockstep.parity.compare)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"'lockstep\.parity' has no attribute 'nonesuch'"):
        lockstep.parity.nonesuch  # noqa: B018


def test_the_catalogue_is_light() -> None:
    assert heavy_after("from lockstep.parity.catalogue import find\nfind('SEM01')") == "[]"
    assert "numpy" in heavy_after("from lockstep.parity import compare"), "the check can see what it looks for"
