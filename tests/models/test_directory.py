"""Directories that appear whole or not at all, whatever happens to the writer."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lockstep.errors import ModelError, StorageError
from lockstep.models.directory import exclusive, read_json, whole_directory, write_json


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write(target, content):
    with whole_directory(target) as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "file").write_text(content)


def read(target):
    return (target / "inner" / "file").read_text()


def test_appears_in_one_rename(tmp_path):
    target = tmp_path / "new" / "model"
    with whole_directory(target) as partial:
        assert partial.parent == target.parent  # one file system, so that rename is atomic
        assert not target.exists()
        (partial / "file").write_text("x")
    assert names(target) == ["file"]
    assert names(target.parent) == ["model"]
    assert target.stat().st_mode & 0o777 == 0o755


def test_replaces_the_old_one(tmp_path):
    target = tmp_path / "model"
    write(target, "old")
    (target / "stale").touch()
    write(target, "new")
    assert read(target) == "new"
    assert names(target) == ["inner"]
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, ModelError])
def test_a_failure_leaves_everything_as_it_was(failure, tmp_path):
    target = tmp_path / "model"
    for expected in ([], ["model"]):
        with pytest.raises(failure), whole_directory(target) as partial:
            (partial / "file").write_text("half")
            raise failure
        assert names(tmp_path) == expected
        write(target, "old")
    assert read(target) == "old"


def test_what_the_disk_refuses_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="No space left on device"), whole_directory(tmp_path / "model"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="written whole"), whole_directory(tmp_path / "file" / "model"):
        pass
    assert names(tmp_path) == ["file"]


def test_a_failed_rename_brings_the_old_one_back(tmp_path, monkeypatch):
    target = tmp_path / "model"
    write(target, "old")
    rename = Path.rename

    def fails(self, to):
        if self.name.endswith(".partial"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(StorageError, match="Input/output error"):
        write(target, "new")
    assert read(target) == "old"
    assert names(tmp_path) == ["model"]


WRITER = """
import sys
from pathlib import Path
from lockstep.models.directory import whole_directory
with whole_directory(Path(sys.argv[1])) as partial:
    (partial / "big").write_bytes(bytes(1000))
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_a_killed_writer_leaves_nothing_for_long(tmp_path):
    target = tmp_path / "model"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stdin is not None
    assert writer.stdout.readline() == "writing\n"
    (partial,) = tmp_path.iterdir()
    write(target, "beside a living writer")
    assert partial.exists()  # it is locked, so it is not abandoned
    writer.kill()
    writer.wait()
    writer.stdin.close()
    writer.stdout.close()
    write(target, "after its death")
    assert names(tmp_path) == ["model"]
    assert read(target) == "after its death"


def test_only_leftovers_of_the_same_target_are_removed(tmp_path):
    for name in (".model.abc.partial", ".other.abc.partial", "model.partial", ".model.abc"):
        (tmp_path / name).mkdir()
    write(tmp_path / "model", "x")
    assert names(tmp_path) == [".model.abc", ".other.abc.partial", "model", "model.partial"]


def test_names_with_glob_characters(tmp_path):
    write(tmp_path / "a[b]*", "x")
    write(tmp_path / "a[b]*", "y")
    assert read(tmp_path / "a[b]*") == "y"


def test_the_lock_lets_one_in_at_a_time(tmp_path):
    lock = tmp_path / "sub" / ".lock"
    with exclusive(lock), lock.open() as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        entered = threading.Event()

        def wait():
            with exclusive(lock):
                entered.set()

        thread = threading.Thread(target=wait)
        thread.start()
        assert not entered.wait(0.02)
    thread.join()
    assert entered.is_set()
    with pytest.raises(KeyError), exclusive(lock):
        raise KeyError
    with lock.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # free again, whatever happened inside


def test_json_round_trip(tmp_path):
    tree = {"a": [1, None, "é\n"], "b": {"c": 1.5}}
    write_json(tmp_path / "x.json", tree)
    assert read_json(tmp_path / "x.json") == tree
    assert "é" in (tmp_path / "x.json").read_text(encoding="utf-8")
    assert read_json(tmp_path / "absent.json", required=False) == {}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe", b'{"a": "\xff"}', b"[" * 100_000])
def test_damaged_json_is_named(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"config.json\): the file must be a JSON object"):
        read_json(tmp_path / "config.json")


def test_an_absent_file_says_what_lies_there(tmp_path):
    with pytest.raises(ModelError, match=r"got an empty directory, expected config\.json"):
        read_json(tmp_path / "config.json")
    for i in range(9):
        (tmp_path / f"{i}.txt").write_text(json.dumps(i))
    with pytest.raises(ModelError, match=r"got 0.txt, .*, 7.txt, \.\.\., expected"):
        read_json(tmp_path / "config.json")
    with pytest.raises(ModelError, match="no such directory"):
        read_json(tmp_path / "nowhere" / "config.json")
    with pytest.raises(ModelError, match=r"Not a directory|a file"):
        read_json(tmp_path / "0.txt" / "config.json")
