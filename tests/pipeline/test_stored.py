"""Weights that a run left behind score its tokens again, bit for bit; what is gone or damaged is a reason, no guess."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from lockstep.adapters.foreign.detection import read
from lockstep.errors import InputError
from lockstep.parity.hypothesis import AS_STATED, Hypothesis, Weights
from lockstep.parity.observation import Observation, Sample
from lockstep.parity.side import CannotAsk
from lockstep.pipeline.stored import KEPT, StoredReference
from lockstep.trace import RunDirectory

MASTERS = Hypothesis(weights=Weights(name="masters"))


@pytest.fixture(scope="module")
def made(run_loop, tiny_config, tmp_path_factory) -> Path:
    """A run of three steps that keeps every checkpoint."""
    path = tmp_path_factory.mktemp("stored") / "run"
    run_loop(path, tiny_config(max_steps=3, train={"checkpoint_every": 1, "keep_checkpoints": 9}))
    return path


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(made, tmp_path / "run"))


def observations(path: Path) -> list[Observation]:
    return list(read(path).observations())


def samples(path: Path, step: int) -> list[Sample]:
    return list(observations(path)[step - 1].samples)


def same(series: list[np.ndarray], told: list[Sample]) -> bool:
    return all(
        s.sampler is not None and np.array_equal(one.view(np.int32), s.sampler.view(np.int32))
        for one, s in zip(series, told, strict=True)
    )


def test_every_step_scores_again_bit_for_bit(made: Path) -> None:
    reference = StoredReference(RunDirectory(made))
    assert reference.versions == (0, 12, 13, 14, 15)
    assert reference.names == ("masters",)
    assert reference.parameters[-1] == "head"
    for observation in observations(made):
        told = list(observation.samples)
        assert observation.expected.number == 11 + observation.step
        assert same(reference.score(told, AS_STATED), told)


def test_older_weights_give_other_numbers(made: Path) -> None:
    told = samples(made, 3)
    for number in (0, 12):
        older = StoredReference(RunDirectory(made)).score(told, Hypothesis(weights=Weights(version=number)))
        assert not same(older, told)


def test_masters_are_those_of_the_version_that_drew(made: Path) -> None:
    reference = StoredReference(RunDirectory(made))
    series = reference.score(samples(made, 2), MASTERS)
    assert not same(series, samples(made, 2))  # fp32 weights round otherwise
    far = max(float(np.abs(a - s.sampler).max()) for a, s in zip(series, samples(made, 2), strict=True))
    assert far < 0.05


def test_no_more_versions_are_kept_than_are_needed(made: Path) -> None:
    reference = StoredReference(RunDirectory(made))
    told = samples(made, 1)
    for number in (*reference.versions, *reference.versions):
        reference.score(told, Hypothesis(weights=Weights(version=number)))
    assert len(reference._weights._read) == KEPT


def test_without_checkpoints_the_last_and_the_first_weights_are_left(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    reference = StoredReference(RunDirectory(run))
    assert (reference.versions, reference.names) == ((0, 15), ())
    with pytest.raises(CannotAsk, match=r"reference \(version 14\): its weights must be held - got none"):
        reference.score(samples(run, 3))
    with pytest.raises(CannotAsk, match=r"masters \(version 14\): its fp32 weights must be in a checkpoint - got none"):
        reference.score(samples(run, 3), MASTERS)


def test_a_checkpoint_that_is_not_whole_is_none(run: Path) -> None:
    (run / "checkpoints" / "step_1" / "COMPLETE").unlink()
    assert StoredReference(RunDirectory(run)).versions == (0, 12, 14, 15)


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("checkpoints/step_1/master.safetensors", "its SHA-256 must be the marker's"),
        ("checkpoints/step_1/COMPLETE", "it must be readable JSON"),
    ],
)
def test_a_damaged_checkpoint_is_a_reason(run: Path, file: str, says: str) -> None:
    (run / file).write_bytes((run / file).read_bytes()[:-40])
    reference = StoredReference(RunDirectory(run))
    with pytest.raises(CannotAsk, match=says):
        reference.score(samples(run, 2))
    assert same(reference.score(samples(run, 3)), samples(run, 3))  # others are as good as before


def test_weights_of_another_digest_are_not_taken_for_a_version(run: Path) -> None:
    """The files of step 3 under the label of another version."""
    metrics = run / "metrics.jsonl"
    (told,) = {line["weight_digest"] for line in RunDirectory(run).metrics() if line["step"] == 3}
    metrics.write_text(metrics.read_text().replace(told, "0" * 64))
    reference = StoredReference(RunDirectory(run))
    with pytest.raises(CannotAsk, match="it must hold version 15 - got digest"):
        reference.score(samples(run, 3), Hypothesis(weights=Weights(version=15)))


def test_a_model_that_cannot_be_had_is_a_reason(run: Path) -> None:
    shutil.rmtree(run / "weights")
    config = run / "config.toml"
    config.write_text(config.read_text().replace('model = "tiny"', 'model = "gone-for-good"'))
    with pytest.raises(CannotAsk, match="gone-for-good"):
        StoredReference(RunDirectory(run)).score(samples(run, 1))


def test_tokens_of_several_versions_have_no_one_master(made: Path) -> None:
    mixed = [*samples(made, 1), *samples(made, 2)]
    with pytest.raises(CannotAsk, match="tokens of 2 versions"):
        StoredReference(RunDirectory(made)).score(mixed, MASTERS)


@pytest.mark.parametrize("file", ["config.toml", "manifest.json"])
def test_what_cannot_be_read_is_an_error(run: Path, file: str) -> None:
    (run / file).write_bytes(b"{")
    with pytest.raises(InputError, match=f"needs {file}"):
        StoredReference(RunDirectory(run))
