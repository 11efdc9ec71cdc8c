"""Compile the C++ kernels for this machine against the torch that is installed, once.

In: the sources beside this file. Out: a shared library in the cache, under a key of everything that its machine code
depends on. It appears there whole or not at all, and ends in a digest of itself: a damaged one is built again. A second
process that wants the same library waits for the first.

The compiler is called directly: a few files, no build system, nothing to install.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

SOURCES = Path(__file__).parent
COMPILERS = ("g++", "c++", "clang++")

# -ffp-contract=off: a product and a sum are one rounding only where the source says fma.
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fopenmp", "-fPIC", "-std=c++20", "-w")

_DIGEST = hashlib.sha256().digest_size


class BuildError(Exception):
    """Why there is no library: no compiler, an error of the compiler, or a cache that cannot be written."""


def library(cache: Path, flags: Sequence[str] = FLAGS) -> Path:
    """The compiled library, from `cache` or new. Raises `BuildError`."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise BuildError(f"no C++ compiler ({', '.join(COMPILERS)}) is installed")
    target = cache / f"{_key(compiler, flags)}.so"
    if _whole(target):
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _alone(target.with_suffix(".lock")):
            if not _whole(target):  # another process may have built it meanwhile
                _build(compiler, flags, target)
    except OSError as cause:
        raise BuildError(f"the library cannot be written: {cause}") from cause
    return target


def _build(compiler: str, flags: Sequence[str], target: Path) -> None:
    sys.stderr.write("compiling CPU kernels once for this machine ...")
    sys.stderr.flush()
    started = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            built = Path(folder) / target.name
            _compile(compiler, flags, built)
            content = built.read_bytes()
            built.write_bytes(content + hashlib.sha256(content).digest())  # a loader does not read past the sections
            built.replace(target)
    except BuildError:
        sys.stderr.write(" failed\n")
        raise
    sys.stderr.write(f" {time.perf_counter() - started:.0f} s\n")


def _compile(compiler: str, flags: Sequence[str], built: Path) -> None:
    """All files at once, then one link."""
    torch_folder = _torch()
    include = torch_folder / "include"
    headers = [f"-isystem{include}", f"-isystem{include / 'torch' / 'csrc' / 'api' / 'include'}"]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    running, objects = [], []
    for source in sorted(SOURCES.glob("*.cpp")):
        objects.append(str(built.with_name(f"{source.stem}.o")))
        command = [compiler, *flags, abi, *headers, "-c", str(source), "-o", objects[-1]]
        running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
    said = [process.communicate()[1] for process in running]  # of all, so that none is left behind
    for process, words in zip(running, said, strict=True):
        _require(process.returncode, words)
    # Linked to the OpenMP that torch brings: a second one would be a second pool of threads on the same cores.
    libraries = [f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10", *(_openmp(torch_folder) or ["-fopenmp"])]
    link = [compiler, "-shared", *objects, "-o", str(built), *libraries]
    linked = subprocess.run(link, capture_output=True, text=True, check=False)
    _require(linked.returncode, linked.stderr)


def _require(status: int, words: str) -> None:
    if status:
        lines = [line.strip() for line in words.splitlines() if "error" in line.lower() or "cannot" in line.lower()]
        raise BuildError(f"the compiler failed: {(lines or [f'status {status}'])[0]}")


def _openmp(torch_folder: Path) -> list[str]:
    beside = (torch_folder / "lib", torch_folder.parent / "torch.libs")
    return [str(path) for folder in beside for path in sorted(folder.glob("lib*omp*.so*"))][:1]


def _torch() -> Path:
    found = importlib.util.find_spec("torch")
    assert found is not None and found.origin is not None, "torch is imported above"
    return Path(found.origin).parent


def _key(compiler: str, flags: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for source in sorted([*SOURCES.glob("*.h"), *SOURCES.glob("*.cpp")]):
        digest.update(f"{source.name}\0".encode() + source.read_bytes() + b"\0")
    facts = (*flags, torch.__version__, str(_torch()), _version(compiler), platform.machine(), _cpu_flags())
    digest.update("\0".join(facts).encode())
    return digest.hexdigest()[:32]


@functools.cache
def _version(compiler: str) -> str:
    said = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    return said.stdout.partition("\n")[0]


@functools.cache
def _cpu_flags() -> str:
    """What the first core says it can do: machine code made for another set may not run, or not round alike."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    wanted = ("flags", "Features", "model name", "CPU part")
    return "\n".join(next((line for line in lines if line.startswith(name)), "") for name in wanted)


def _whole(path: Path) -> bool:
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return len(content) > _DIGEST and hashlib.sha256(content[:-_DIGEST]).digest() == content[-_DIGEST:]


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock among processes; it goes with the process that holds it."""
    handle = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
