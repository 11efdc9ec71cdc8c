"""The library is built once, whole or not at all, and a reason is given where it cannot be had."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lockstep.kernels.native import build
from lockstep.kernels.native.build import FLAGS, BuildError, library

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, build.COMPILERS)), reason="no C++ compiler")


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library of one function, so that a build takes a moment."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "answer.cpp").write_text('extern "C" int answer() { return 42; }\n')
    monkeypatch.setattr(build, "SOURCES", folder)
    return folder


@needs_compiler
def test_a_library_is_built_once_and_announced_in_one_line(
    sources: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    built = library(tmp_path / "cache")
    assert ctypes.CDLL(str(built)).answer() == 42
    said = capfd.readouterr().err
    assert said.startswith("compiling CPU kernels once for this machine") and said.count("\n") == 1
    before = built.stat().st_mtime_ns
    assert library(tmp_path / "cache") == built
    assert built.stat().st_mtime_ns == before
    assert capfd.readouterr().err == ""


@needs_compiler
@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:-1], lambda b: b[:100] + b"\0" + b[101:] + b"x"])
def test_a_damaged_library_is_built_again(sources: Path, tmp_path: Path, damage) -> None:
    built = library(tmp_path / "cache")
    whole = built.read_bytes()
    built.unlink()  # a loaded library must not change under its process
    built.write_bytes(damage(whole))
    assert library(tmp_path / "cache") == built
    assert ctypes.CDLL(str(built)).answer() == 42


@needs_compiler
def test_sources_and_flags_have_libraries_of_their_own(sources: Path, tmp_path: Path) -> None:
    first = library(tmp_path / "cache")
    other = library(tmp_path / "cache", (*FLAGS, "-DOTHER"))
    (sources / "answer.cpp").write_text('extern "C" int answer() { return 43; }\n')
    third = library(tmp_path / "cache")
    assert len({first, other, third}) == 3
    assert ctypes.CDLL(str(third)).answer() == 43
    left = {path.suffix for path in (tmp_path / "cache").iterdir()}
    assert left == {".so", ".lock"}, "no temporary folder stays"


@needs_compiler
def test_a_source_that_does_not_compile_is_named(sources: Path, tmp_path: Path) -> None:
    (sources / "wrong.cpp").write_text("int f() { return nothing; }\n")
    with pytest.raises(BuildError, match=r"wrong\.cpp:1.*error.*nothing"):
        library(tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.so"))


def test_without_a_compiler_the_reason_says_so(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "COMPILERS", ("no-such-compiler",))
    with pytest.raises(BuildError, match="no-such-compiler"):
        library(tmp_path / "cache")


@needs_compiler
def test_a_cache_that_cannot_be_written_is_a_reason(sources: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(BuildError, match="cannot be written"):
        library(tmp_path / "cache")


@needs_compiler
def test_processes_that_want_it_at_once_build_it_once(sources: Path, tmp_path: Path) -> None:
    code = (
        "import ctypes, sys; from pathlib import Path; from lockstep.kernels.native import build\n"
        "build.SOURCES = Path(sys.argv[1])\n"
        "assert ctypes.CDLL(str(build.library(Path(sys.argv[2])))).answer() == 42"
    )
    command = [sys.executable, "-c", code, str(sources), str(tmp_path / "cache")]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], said
    assert sum("compiling" in words for words in said) == 1
