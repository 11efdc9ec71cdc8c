"""Memory without a name: the same tensors in two processes, and nothing left behind."""

from __future__ import annotations

import gc
import math
import multiprocessing
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lockstep.engine.remote.shared import Layout, SharedMemory

SHAPES = {"a": (3, 5), "b": (7,), "c": (2, 2)}


def params(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}


def memory_for(dtype=torch.float32) -> tuple[Layout, SharedMemory]:
    layout = Layout.of(SHAPES, dtype)
    return layout, SharedMemory(layout.num_bytes)


def entries(directory: str) -> list[Path]:
    return sorted(Path(directory).iterdir())


def maps() -> int:
    return Path("/proc/self/maps").read_text().count("lockstep-weights")


@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple), min_size=1, max_size=8),
    st.sampled_from([torch.bfloat16, torch.float32]),
)
def test_places_do_not_overlap_are_aligned_and_fit(shapes, dtype):
    layout = Layout.of({str(i): shape for i, shape in enumerate(shapes)}, dtype)
    end = 0
    for place, shape in zip(layout.places.values(), shapes, strict=True):
        assert place.offset is not None
        assert (place.offset >= end, place.offset % 64) == (True, 0)
        assert (place.shape, place.dtype) == (shape, dtype)
        end = place.offset + math.prod(shape) * dtype.itemsize
    assert end <= layout.num_bytes < end + 64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_is_written_is_read_and_is_the_same_memory(dtype):
    layout, memory = memory_for(dtype)
    places = memory.write(params(dtype), layout)
    found = memory.read(places)
    assert all(torch.equal(found[name], tensor) for name, tensor in params(dtype).items())
    found["b"][3] = 42
    assert memory.read(places)["b"][3] == 42
    assert found["a"].data_ptr() % 64 == 0


def test_parameters_that_need_gradients_or_are_strided_are_copied_too():
    layout, memory = memory_for()
    given_ = params()
    given_["a"] = given_["a"].T.contiguous().T
    given_["b"].requires_grad_()
    found = memory.read(memory.write(given_, layout))
    assert torch.equal(found["a"], given_["a"])
    assert not found["b"].requires_grad


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found.pop("b"),
        lambda found: found.update(d=torch.zeros(2)),
        lambda found: found.update(b=torch.zeros(8)),
        lambda found: found.update(b=torch.zeros(7, dtype=torch.float64)),
    ],
    ids=["missing", "extra", "shape", "dtype"],
)
def test_of_other_tensors_only_the_description_travels(change):
    layout, memory = memory_for()
    memory.write(params(), layout)
    other = {name: tensor + 1 for name, tensor in params().items()}
    change(other)
    places = memory.write(other, layout)
    found = memory.read(places)
    assert {n: (t.shape, t.dtype) for n, t in found.items()} == {n: (t.shape, t.dtype) for n, t in other.items()}
    assert all(tensor.is_meta for tensor in found.values())
    kept = memory.read(tuple(layout.places.values()))
    assert all(torch.equal(kept[name], tensor) for name, tensor in params().items()), "nothing was overwritten"


def test_it_has_no_path_and_goes_with_the_last_tensor():
    gc.collect()  # what earlier tests left
    before, named, open_files = maps(), entries("/dev/shm"), len(entries("/proc/self/fd"))
    layout, memory = memory_for()
    tensor = memory.read(memory.write(params(), layout))["a"]
    assert entries("/dev/shm") == named
    memory.handed_over()
    memory.handed_over()  # nothing more happens
    del memory
    gc.collect()
    assert maps() == before + 1
    assert torch.equal(tensor, params()["a"]), "a tensor keeps the memory"
    del tensor
    gc.collect()
    assert maps() == before
    assert len(entries("/proc/self/fd")) == open_files


def test_another_process_sees_the_same_bytes():
    layout, memory = memory_for()
    new = {name: 2 * tensor for name, tensor in params().items()}
    places = memory.write(params(), layout)
    process = multiprocessing.get_context("spawn").Process(target=memory.write, args=(new, layout))
    process.start()
    memory.handed_over()
    process.join(120)
    assert process.exitcode == 0
    found = memory.read(places)
    assert all(torch.equal(found[name], tensor) for name, tensor in new.items())


def test_what_was_handed_over_cannot_be_given_to_a_second_process():
    _, memory = memory_for()
    memory.handed_over()
    with pytest.raises(AssertionError, match="handed over"):
        memory.__reduce__()
