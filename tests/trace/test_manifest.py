"""The manifest says what decided the numbers, and nothing about who ran it."""

from __future__ import annotations

import getpass
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import orjson

from lockstep.config import RunConfig
from lockstep.trace import manifest


def test_it_records_versions_machine_seed_and_digest() -> None:
    found = manifest.collect(RunConfig(seed=11))
    assert found["seed"] == 11 and found["outcome"] is None and found["resumed"] == []
    assert found["versions"]["torch"] == version("torch") and found["versions"]["python"] == platform.python_version()
    assert found["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert 0 < found["machine"]["memory_gib"] < 1e6
    assert found["machine"]["cpu"]
    assert orjson.loads(orjson.dumps(found)) == found


def test_the_digest_is_of_the_settings_alone() -> None:
    digest = manifest.collect(RunConfig())["config_digest"]
    assert len(digest) == 64 and digest == manifest.collect(RunConfig())["config_digest"]
    assert digest != manifest.collect(RunConfig(seed=1))["config_digest"]


def test_the_processor_is_read_from_cpuinfo(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\nmodel name\t: Test CPU 9000\nflags\t\t: fpu avx2 avx512_bf16 foo\n"
        "\nprocessor\t: 1\nmodel name\t: B\n"
    )
    found = manifest.machine(tmp_path / "cpuinfo")
    assert found["cpu"] == "Test CPU 9000" and found["cpu_flags"] == ["avx2", "avx512_bf16"]
    assert manifest.machine(tmp_path / "none")["cpu"]


def test_a_resumption_says_what_changed_since() -> None:
    first = manifest.collect(RunConfig())
    assert manifest.resumption(first, 20)["changed"] == {}
    first["versions"]["torch"] = "2.0.0"
    first["machine"]["cpu"] = "Another"
    entry = manifest.resumption(first, 20)
    assert entry["after_step"] == 20
    assert entry["changed"]["versions.torch"] == ["2.0.0", version("torch")]
    assert entry["changed"]["machine.cpu"][0] == "Another"


def test_it_names_neither_user_nor_host() -> None:
    text = orjson.dumps(manifest.collect(RunConfig())).decode()
    assert f'"{platform.node()}"' not in text
    assert f'"{getpass.getuser()}"' not in text


def test_tracing_imports_no_torch() -> None:
    program = "import sys, lockstep.trace; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_code_is_named_by_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "a.py").write_text("x = 1")
    before = manifest.code_digest(tmp_path)
    assert manifest.code_digest(tmp_path) == before
    (tmp_path / "notes.txt").write_text("no code")
    assert manifest.code_digest(tmp_path) == before
    (tmp_path / "part" / "a.py").rename(tmp_path / "a.py")
    moved = manifest.code_digest(tmp_path)
    (tmp_path / "a.py").write_text("x = 2")
    assert len({before, moved, manifest.code_digest(tmp_path), manifest.code_digest()}) == 4
    assert manifest.versions()["code"] == manifest.code_digest()
