"""What a run was made with: versions, machine, seed, digests.

In: the resolved configuration. Out: a JSON-ready mapping. Imports neither torch nor anything that is only looked up;
records neither host name nor user, so that a run directory can be published.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lockstep.config import RunConfig, to_toml

SCHEMA = 1
PACKAGE = Path(__file__).resolve().parents[1]
PACKAGES = ("lockstep-rl", "torch", "numpy", "tokenizers", "safetensors", "pyarrow", "transformers")
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "bf16", "sve", "i8mm")
"""Instruction sets that decide which matrix-product kernel runs, and so the bits."""


def collect(config: RunConfig) -> dict[str, Any]:
    """The manifest before the model is loaded; the loop adds `model` and `invariance` when it knows them."""
    return {
        "schema": SCHEMA,
        "started": now(),
        "ended": None,
        "outcome": None,
        "resumed": [],
        "seed": config.seed,
        "config_digest": hashlib.sha256(to_toml(config).encode()).hexdigest(),
        "versions": versions(),
        "machine": machine(),
    }


def versions() -> dict[str, str]:
    """Python's and the installed packages' versions; a package that is missing is left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    found["code"] = code_digest()
    return found


def code_digest(package: Path = PACKAGE) -> str:
    """The first half of the SHA-256 of the package's sources: equal versions may still be other code, other bits."""
    files = sorted(file for pattern in ("*.py", "*.cpp", "*.h") for file in package.rglob(pattern))
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.relative_to(package).as_posix()}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()[:32]


def machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """Platform, processor, the cores this process may use, and memory in GiB (None where the system does not say)."""
    fields = _cpu_fields(cpuinfo)
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "platform": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "cpu_flags": [flag for flag in CPU_FLAGS if flag in flags],
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "memory_gib": _memory_gib(),
    }


def resumption(manifest: Mapping[str, Any], step: int) -> dict[str, Any]:
    """An entry of `resumed`: when, after which step, and what differs in versions or machine from the first start."""
    return {"at": now(), "after_step": step, "changed": changes(manifest)}


def changes(manifest: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What differs here and now from the versions and the machine of a manifest: ``"machine.cpu": [then, now]``."""
    changed: dict[str, list[Any]] = {}
    for group, present in (("versions", versions()), ("machine", machine())):
        before = manifest.get(group) or {}
        for key in sorted({*before, *present}):
            if before.get(key) != present.get(key):
                changed[f"{group}.{key}"] = [before.get(key), present.get(key)]
    return changed


def now() -> str:
    """The time in UTC, ISO 8601, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _cpu_fields(cpuinfo: Path) -> dict[str, str]:
    if sys.platform != "linux" or not cpuinfo.is_file():
        return {}
    first = cpuinfo.read_text(encoding="utf-8", errors="replace").split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _memory_gib() -> float | None:
    names = getattr(os, "sysconf_names", {})
    if "SC_PAGE_SIZE" not in names or "SC_PHYS_PAGES" not in names:
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
