from __future__ import annotations

import numpy as np
import pytest
import torch

from lockstep import models
from lockstep.adapters.engines.publisher import Publisher
from lockstep.errors import InputError
from lockstep.models.checkpoint import digest, read_parameters
from lockstep.parity.observation import Sample


def sample(count: int = 4) -> Sample:
    return Sample("a", np.arange(1, 6, dtype=np.int32), np.arange(2, 2 + count, dtype=np.int32))


def test_the_first_version_is_the_model_rounded_to_bfloat16(publisher, tiny):
    assert publisher.newest == 0 and publisher.path(0) != tiny.path, "the checkpoint is float32"
    read = read_parameters(publisher.path(0), tiny.arch, torch.float32)
    assert all(torch.equal(read[name], tensor.float()) for name, tensor in publisher.held()[0].items())
    said = publisher.statement()
    assert (said.number, said.digest) == (0, digest(publisher.held()[0]))


def test_a_checkpoint_in_bfloat16_is_used_where_it_lies(publisher, tmp_path):
    narrow = models.load(str(publisher.path(0)))
    again = Publisher(narrow, tmp_path / "again")
    assert again.path(0) == narrow.path and again.statement().digest == publisher.statement().digest


def test_a_step_makes_other_weights_and_leaves_the_old_ones(publisher):
    before = {name: tensor.clone() for name, tensor in publisher.held()[0].items()}
    assert publisher.learn([sample()]) == 1 == publisher.newest
    old, new = publisher.held()[0], publisher.held()[1]
    assert all(torch.equal(old[name], before[name]) for name in old)
    assert not all(torch.equal(old[name], new[name]) for name in old)
    assert publisher.learn([sample(6)]) == 2
    assert publisher.statement().digest == digest(publisher.held()[2])
    assert len({digest(publisher.held()[number]) for number in range(3)}) == 3


def test_a_version_is_a_directory_that_loads_to_the_same_bits(publisher):
    publisher.learn([sample()])
    path = publisher.path(1)
    assert publisher.path(1) == path, "it is written once"
    read = read_parameters(path, models.load(str(path)).arch, torch.bfloat16)
    assert digest(read) == digest(publisher.held()[1])


def test_another_dtype_holds_the_same_numbers_and_grows_along(publisher):
    wide = publisher.held("float32")
    assert list(wide) == [0]
    publisher.learn([sample()])
    assert list(wide) == [0, 1] and len(wide) == 2
    narrow = publisher.held()[1]
    assert all(wide[1][name].dtype is torch.float32 for name in narrow)
    assert all(torch.equal(wide[1][name], narrow[name].float()) for name in narrow)
    assert wide[1] is wide[1], "cast once"


def test_no_tokens_are_no_training_step(publisher):
    for samples in ([], [sample(0)]):
        with pytest.raises(InputError, match="needs tokens"):
            publisher.learn(samples)
    assert publisher.newest == 0


def test_equal_steps_make_equal_weights(tiny, tmp_path):
    digests = set()
    for name in ("a", "b"):
        publisher = Publisher(tiny, tmp_path / name)
        publisher.learn([sample()])
        digests.add(publisher.statement().digest)
    assert len(digests) == 1
