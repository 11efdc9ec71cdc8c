"""Which kernels run is one environment variable, and a machine without them is told so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lockstep.errors import ConfigError
from lockstep.kernels.attention import paged_attention, plan_tiles
from lockstep.kernels.native import library as module
from lockstep.kernels.native.build import BuildError
from lockstep.kernels.native.library import operators, operators_for


@pytest.fixture
def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine without a compiler, in a process that has loaded nothing."""

    class Nothing:
        pass

    def fail(_: Path) -> Path:
        raise BuildError("no C++ compiler (g++) is installed")

    monkeypatch.setattr(module.torch.ops, "lockstep", Nothing())
    monkeypatch.setattr(module, "library", fail)
    module._load.cache_clear()
    yield
    module._load.cache_clear()


def test_without_a_library_the_reference_runs_and_one_line_says_why(
    nothing_loaded: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCKSTEP_KERNELS", "auto")
    assert operators() is None
    assert operators() is None
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "WARNING" in said and "no C++ compiler" in said and "PyTorch reference" in said
    q, k = torch.ones(1, 2, 8), torch.ones(1, 1, 16, 8)
    assert torch.equal(paged_attention(q, k, k, plan_tiles([0], [1], [[0]]), 1.0), q)


def test_native_refuses_to_run_without_them(nothing_loaded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCKSTEP_KERNELS", "native")
    with pytest.raises(ConfigError, match=r"LOCKSTEP_KERNELS \(native\).*no C\+\+ compiler"):
        operators()


def test_reference_and_unknown_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCKSTEP_KERNELS", "reference")
    assert operators() is None
    monkeypatch.setenv("LOCKSTEP_KERNELS", "fast")
    with pytest.raises(ConfigError, match="auto or native or reference"):
        operators()


def test_other_dtypes_and_mixtures_take_the_reference() -> None:
    half, single = torch.ones(1, dtype=torch.float16), torch.ones(1)
    assert operators_for(half) is None
    assert operators_for(single.double()) is None
    assert operators_for(single, single.bfloat16()) is None
    assert operators_for(torch.ones(1, device="meta")) is None


@pytest.mark.skipif(operators() is None, reason="no C++ kernels here")
def test_one_pool_of_threads() -> None:
    """A second OpenMP in the process is a second pool on the same cores."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc")
    libraries = {
        line.split()[-1]
        for line in maps.read_text().splitlines()
        if re.match("lib[a-z]*omp[0-9]*[.-]", line.rpartition("/")[2])
    }
    assert len(libraries) <= 1, libraries
