"""Memory that two processes see, laid out for the parameters of one architecture.

In: parameters on one side. Out: the same tensors on the other, without a copy. The memory is a file without a name
(memfd): no path holds it, so it goes with the last process that has it open, however that one ends.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.reduction import DupFd
from typing import Any

import torch
from torch import Tensor

_ALIGNMENT = 64  # bytes; what torch gives its own tensors


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor that was sent; `offset` in bytes, None if the memory has no room set aside for such a tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int | None


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each parameter lies, and how many bytes that takes."""

    places: Mapping[str, Place]
    num_bytes: int

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> Layout:
        """The layout of parameters of these shapes, all of `dtype`."""
        places, end = {}, 0
        for name, shape in shapes.items():
            places[name] = Place(name, shape, dtype, end)
            end += -(-math.prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
        return cls(places, end)


class SharedMemory:
    """`num_bytes` that another process can be given: a process that is started with it sees the same bytes."""

    __slots__ = ("_bytes", "_descriptor")

    def __init__(self, num_bytes: int) -> None:
        self._descriptor: int | None = os.memfd_create("lockstep-weights", os.MFD_CLOEXEC)
        os.truncate(self._descriptor, num_bytes)
        self._bytes = mmap.mmap(self._descriptor, num_bytes)

    def __reduce__(self) -> tuple[Any, ...]:
        assert self._descriptor is not None, "it has been handed over"
        return _attach, (DupFd(self._descriptor),)  # inherited by the process that is being started

    def handed_over(self) -> None:
        """Close the descriptor; the bytes stay. No further process can be given them."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def tensor(self, place: Place) -> Tensor:
        """The tensor that lies there; it keeps the memory alive."""
        assert place.offset is not None, "a tensor without a place"
        count = math.prod(place.shape)
        return torch.frombuffer(self._bytes, dtype=place.dtype, count=count, offset=place.offset).view(place.shape)

    def write(self, params: Mapping[str, Tensor], layout: Layout) -> tuple[Place, ...]:
        """Copy `params`, if they are those of `layout`; otherwise nothing is copied and no place has an offset."""
        found = [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in params.items()]
        wanted = layout.places
        if params.keys() != wanted.keys() or any((wanted[n].shape, wanted[n].dtype) != (s, d) for n, s, d in found):
            return tuple(Place(name, shape, dtype, None) for name, shape, dtype in found)
        for name, tensor in params.items():
            self.tensor(wanted[name]).copy_(tensor.detach())
        return tuple(wanted[name] for name in params)

    def read(self, places: Sequence[Place]) -> dict[str, Tensor]:
        """What was written; of a tensor without an offset only shape and dtype, by which it will be refused."""
        return {
            place.name: torch.empty(place.shape, dtype=place.dtype, device="meta")
            if place.offset is None
            else self.tensor(place)
            for place in places
        }


def _attach(descriptor: Any) -> SharedMemory:
    """In the process that was started: the same bytes."""
    memory = SharedMemory.__new__(SharedMemory)
    number = descriptor.detach()
    memory._bytes = mmap.mmap(number, 0)  # all of it
    memory._descriptor = None
    os.close(number)
    return memory
