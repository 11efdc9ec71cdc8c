"""A checkpoint is whole or not there, and a resumed run ends with the bits of one that was never stopped."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from lockstep.errors import GateRefused, ModelError, StorageError
from lockstep.models import checkpoint as model_checkpoint
from lockstep.models import directory as model_directory
from lockstep.models.checkpoint import digest
from lockstep.models.tiny import small
from lockstep.train import checkpoint

FILES = ["master.safetensors", "moments.safetensors", "state.json", "COMPLETE"]


def fingerprint(trainer):
    """Every bit that decides the future of a run."""
    optimizer = trainer.optimizer
    trainer.check()
    parts = [digest(part) for part in (trainer.params, optimizer.masters, optimizer.moments())]
    reference = None if trainer.reference is None else digest(trainer.reference)
    return trainer.version, parts, reference, optimizer.steps, optimizer.objective


@contextmanager
def largest_file(size):
    """A real limit of the kernel: a write beyond it fails with EFBIG (Python ignores the signal)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sections", [{}, {"loss": {"type": "gspo", "beta": 0.1}, "optim": {"warmup_steps": 4}}])
def test_a_resumed_run_is_the_uninterrupted_one(make, tmp_path, dtype, sections):
    settings = {"optim": {"lr": 1e-3, **sections.get("optim", {})}, "loss": sections.get("loss", {})}
    whole = make.trainer(dtype, **settings)
    for seed in range(5):
        make.take_step(whole, seed)

    first = make.trainer(dtype, **settings)
    for seed in range(3):
        make.take_step(first, seed)
    path = checkpoint.save(tmp_path, first, 3, {"tokens": 57})
    resumed = make.trainer(dtype, seed=6, **settings)
    state = checkpoint.load(path, resumed)
    assert (state.step, state.version, state.extra) == (3, first.version, {"tokens": 57})
    assert state.config_digest == checkpoint.config_digest(first.config)
    assert fingerprint(resumed) == fingerprint(first)
    for seed in range(3, 5):
        make.take_step(resumed, seed)
    assert fingerprint(resumed) == fingerprint(whole)


def test_loading_replaces_everything_that_was_there(make, tmp_path):
    """Into a trainer with other weights, moments, a reference and a proposal that waits."""
    saved = make.trainer()
    make.take_step(saved)
    path = checkpoint.save(tmp_path, saved, 1)
    other = make.trainer(seed=7, loss={"beta": 0.1})
    make.take_step(other, 4)
    from lockstep.train import Batch

    proposal = other.propose(Batch.of(make.on_policy(other), [1.0, -1.0, 0.5, -0.5]))
    checkpoint.load(path, other)
    assert fingerprint(other) == fingerprint(saved)
    assert other.pending is None
    with pytest.raises(GateRefused):
        other.step(proposal, make.admit(proposal))
    make.take_step(saved, 2)
    plain = make.trainer()
    checkpoint.load(path, plain)
    make.take_step(plain, 2)
    assert fingerprint(plain) == fingerprint(saved)


def test_loading_does_not_tie_the_trainer_to_the_file(make, tmp_path):
    saved = make.trainer()
    make.take_step(saved)
    path = checkpoint.save(tmp_path, saved, 1)
    loaded = make.trainer(seed=3)
    checkpoint.load(path, loaded)
    for name in ("master.safetensors", "moments.safetensors"):
        (path / name).write_bytes(b"\0" * (path / name).stat().st_size)
    assert fingerprint(loaded) == fingerprint(saved)


def test_before_the_first_step_and_between_warm_start_and_rl(make, tmp_path):
    trainer = make.trainer()
    assert fingerprint(reloaded(make, checkpoint.save(tmp_path, trainer, 0))) == fingerprint(trainer)
    trainer.supervise([[5, 6]], [[7]])
    assert fingerprint(reloaded(make, checkpoint.save(tmp_path, trainer, 1))) == fingerprint(trainer)


def reloaded(make, path):
    trainer = make.trainer(seed=5)
    checkpoint.load(path, trainer)
    return trainer


def test_what_lies_on_disk(make, tmp_path):
    trainer = make.trainer("bfloat16", loss={"beta": 0.1})
    make.take_step(trainer)
    path = checkpoint.save(tmp_path / "checkpoints", trainer, 20)
    assert path == tmp_path / "checkpoints" / "step_20"
    assert sorted(p.name for p in path.iterdir()) == sorted([*FILES, "reference.safetensors"])
    assert [p.name for p in path.parent.iterdir()] == ["step_20"]
    state = json.loads((path / "state.json").read_text())
    assert (state["schema"], state["step"], state["dtype"]) == (1, 20, "bfloat16")
    assert state["version"] == {"number": 1, "digest": trainer.version.digest}


def test_the_last_ones_are_kept(make, tmp_path):
    trainer = make.trainer(train={"keep_checkpoints": 2})
    for step in (5, 10, 15, 100):
        checkpoint.save(tmp_path, trainer, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_100", "step_15"]
    assert checkpoint.latest(tmp_path) == tmp_path / "step_100"


def test_a_checkpoint_just_written_is_never_pruned(make, tmp_path):
    trainer = make.trainer()
    checkpoint.save(tmp_path, trainer, 40)
    assert checkpoint.save(tmp_path, trainer, 20).is_dir()


def test_the_same_step_may_be_written_again(make, tmp_path):
    trainer = make.trainer()
    checkpoint.save(tmp_path, trainer, 1)
    make.take_step(trainer)
    path = checkpoint.save(tmp_path, trainer, 1, {"again": True})
    assert fingerprint(reloaded(make, path)) == fingerprint(trainer)
    assert [p.name for p in tmp_path.iterdir()] == ["step_1"]


def test_latest_sees_only_complete_ones(make, tmp_path):
    assert checkpoint.latest(tmp_path / "nowhere") is None
    assert checkpoint.latest(tmp_path) is None
    good = checkpoint.save(tmp_path, make.trainer(), 9)
    (tmp_path / "step_10").mkdir()
    (tmp_path / "step_10" / "master.safetensors").write_bytes(b"half")
    (tmp_path / ".step_11.abcd.partial").mkdir()
    (tmp_path / "step_x").mkdir()
    (tmp_path / "step_12").write_text("a file")
    assert checkpoint.latest(tmp_path) == good


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove"])
def test_damage_is_found_and_named(make, tmp_path, name, damage):
    trainer = make.trainer()
    make.take_step(trainer)
    path = checkpoint.save(tmp_path, trainer, 1)
    file = path / name
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[-3] ^= 1
        file.write_bytes(data)
    elif damage == "truncate":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "empty":
        file.write_bytes(b"")
    else:
        file.unlink()
    victim = make.trainer(seed=2)
    before = fingerprint(victim)
    accused = r"checkpoint \(.*step_1/" + (r"\S+\)" if name == "COMPLETE" else name.replace(".", r"\.") + r"\)")
    with pytest.raises(ModelError, match=accused):
        checkpoint.load(path, victim)
    assert fingerprint(victim) == before


def rewrite(path, **changes):
    """Change the state and make the marker agree, as another version of the program would."""
    state = json.loads((path / "state.json").read_text()) | changes
    (path / "state.json").write_text(json.dumps(state))
    marker = json.loads((path / "COMPLETE").read_text())
    marker["state.json"] = checkpoint._file_digest(path / "state.json")
    (path / "COMPLETE").write_text(json.dumps(marker))


def test_an_unknown_schema_is_refused(make, tmp_path):
    path = checkpoint.save(tmp_path, make.trainer(), 1)
    rewrite(path, schema=99)
    with pytest.raises(ModelError, match=r"state\.json\): its schema must be known - got 99, expected 1"):
        checkpoint.load(path, make.trainer())


def test_weights_must_have_the_digest_of_their_version(make, tmp_path):
    path = checkpoint.save(tmp_path, make.trainer(), 1)
    rewrite(path, version={"number": 1, "digest": "0" * 64})
    with pytest.raises(ModelError, match="digest of their version"):
        checkpoint.load(path, make.trainer())


def test_checkpoints_of_other_models_and_dtypes_are_refused(make, tmp_path):
    path = checkpoint.save(tmp_path, make.trainer(), 1)
    victim = make.trainer(arch=small("llama"))
    before = fingerprint(victim)
    with pytest.raises(ModelError, match=r"master\.safetensors\): .* must fit the model - got"):
        checkpoint.load(path, victim)
    assert fingerprint(victim) == before
    with pytest.raises(ModelError, match=r"master\.safetensors\): qkv_bias|master\.safetensors\): .* must fit"):
        checkpoint.load(path, make.trainer(arch=small("qwen2", num_layers=1)))
    with pytest.raises(ModelError, match=r"state\.json\): engine\.dtype must be that of the run - got bfloat16"):
        checkpoint.load(path, make.trainer("bfloat16"))


@pytest.mark.parametrize("size", [0, 100, 100_000])
def test_a_full_disk_leaves_the_older_checkpoint_and_no_trace(make, tmp_path, size):
    trainer = make.trainer()
    old = checkpoint.save(tmp_path, trainer, 1)
    make.take_step(trainer)
    content = {p.name: p.read_bytes() for p in old.iterdir()}
    with largest_file(size), pytest.raises(StorageError, match=r"\(.*master\.safetensors\)|\(.*step_2\)"):
        checkpoint.save(tmp_path, trainer, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["step_1"]
    assert {p.name: p.read_bytes() for p in old.iterdir()} == content
    assert checkpoint.latest(tmp_path) == old
    new = checkpoint.save(tmp_path, trainer, 2)
    assert fingerprint(reloaded(make, new)) == fingerprint(trainer)


@pytest.mark.parametrize("name", ["state.json", "COMPLETE"])
def test_a_disk_that_fills_up_at_the_end_leaves_no_trace_either(make, tmp_path, monkeypatch, name):
    old = checkpoint.save(tmp_path, make.trainer(), 1)
    write = Path.write_text

    def full(self, *args, **kwargs):
        if self.name == name:
            raise OSError(28, os.strerror(28))
        return write(self, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StorageError, match="No space left on device"):
        checkpoint.save(tmp_path, make.trainer(), 2)
    assert [p.name for p in tmp_path.iterdir()] == ["step_1"]
    assert checkpoint.latest(tmp_path) == old


def test_a_directory_that_cannot_be_made(make, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        checkpoint.save(tmp_path / "file" / "checkpoints", make.trainer(), 1)


def test_everything_is_on_disk_before_the_name_appears(make, tmp_path, monkeypatch):
    """At the rename every file has been fsync'd, the marker is there, and it was written last."""
    events = []
    flush, replace = model_directory.flush_to_disk, model_directory._replace

    def flushed(path):
        events.append(path.name)
        flush(path)

    def replaced(partial, target):
        assert sorted(p.name for p in partial.iterdir()) == sorted(FILES)
        assert {*FILES} <= {*events}
        times = {p.name: p.stat().st_mtime_ns for p in partial.iterdir()}
        assert max(times, key=lambda n: times[n]) == "COMPLETE"
        events.append("rename")
        replace(partial, target)

    monkeypatch.setattr(model_directory, "flush_to_disk", flushed)
    monkeypatch.setattr(checkpoint, "flush_to_disk", flushed)
    monkeypatch.setattr(model_directory, "_replace", replaced)
    checkpoint.save(tmp_path, make.trainer(), 1)
    assert events.index("rename") > events.index("COMPLETE") > events.index("state.json")
    assert events[-1] == tmp_path.name, "the directory's own entry"


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from lockstep.config import parse
from lockstep.models import Model, directory
from lockstep.models.tiny import TINY, initial_parameters
from lockstep.train import Trainer, checkpoint

trainer = Trainer(Model(Path("none"), TINY, None), initial_parameters(TINY, 0), parse({"engine": {"dtype": "float32"}}))
checkpoint.save(Path(sys.argv[1]), trainer, 1)
directory._replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
checkpoint.save(Path(sys.argv[1]), trainer, 2)
"""


def test_a_killed_writer_leaves_the_older_checkpoint_and_the_next_one_cleans_up(make, tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2, "a partial directory lies about"
    assert checkpoint.latest(tmp_path) == tmp_path / "step_1"
    trainer = make.trainer()
    assert fingerprint(reloaded(make, tmp_path / "step_1")) == fingerprint(trainer)
    checkpoint.save(tmp_path, trainer, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["step_2"]


def test_weights_nobody_can_vouch_for_are_not_saved(make, tmp_path, monkeypatch):
    trainer = make.trainer()

    def interrupted():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer.optimizer, "publish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trainer.supervise([[5]], [[6]])
    with pytest.raises(GateRefused, match="must not be cut off"):
        checkpoint.save(tmp_path, trainer, 1)
    assert list(tmp_path.iterdir()) == []
    good = checkpoint.save(tmp_path, make.trainer(), 1)
    checkpoint.load(good, trainer)
    make.take_step(trainer)
    trainer.check()


def test_published_weights_and_checkpoint_agree(make, tmp_path):
    """The HF directory written beside a checkpoint holds the weights that the checkpoint's version names."""
    trainer = make.trainer("bfloat16")
    make.take_step(trainer)
    arch = trainer.model.arch
    (tmp_path / "hf").mkdir()
    model_checkpoint.write_network(tmp_path / "hf", trainer.params, arch, {})
    read = model_checkpoint.read_parameters(tmp_path / "hf", arch, torch.bfloat16)
    assert digest(read) == trainer.version.digest
