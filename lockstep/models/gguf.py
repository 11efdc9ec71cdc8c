"""Read a GGUF file (llama.cpp's format, version 2 and 3, little endian) and dequantise its tensors.

In: the file, memory-mapped. Out: metadata, and float32 arrays bit-equal to those of the reference implementation.
Every length and offset in the file is checked before it is used; whatever is wrong is a `ModelError`.

    magic version #tensors #entries | key type value ... | name shape kind offset ... | padding | data

Letters: B blocks of a tensor, each of a fixed number of weights.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from lockstep.errors import ModelError, message

Value = bool | int | float | str | list[Any]

_MAGIC = b"GGUF"
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_MAX_DIMENSIONS = 4
_MAX_NESTING = 4  # arrays in arrays


@dataclass(frozen=True, slots=True)
class Kind:
    """How a tensor is stored: `block` weights in `size` bytes, and the map from raw blocks [B, size] to [B, block]."""

    name: str
    block: int
    size: int
    decode: Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies. `shape` has the fastest dimension last, as numpy has it (the file has it first)."""

    name: str
    kind: Kind
    shape: tuple[int, ...]
    offset: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) // self.kind.block * self.kind.size


@dataclass(slots=True)
class GGUF:
    """An open file: `metadata` and `tensors` by name. Use as a context manager."""

    path: Path
    metadata: Mapping[str, Value]
    tensors: Mapping[str, TensorInfo]
    _map: mmap.mmap = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> GGUF:
        """Map and parse `path`. Raises `ModelError`."""
        try:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as cause:  # ValueError: an empty file cannot be mapped
            raise _damaged(path, "the file must be readable", cause, "a GGUF file") from None
        try:
            metadata, tensors = _parse(_Cursor(path, mapped))
        except ModelError:
            mapped.close()
            raise
        return cls(path, metadata, tensors, mapped)

    def __enter__(self) -> GGUF:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(BufferError):  # an error's traceback still holds a view; the map goes with it
            self._map.close()

    def read(self, name: str) -> np.ndarray:
        """Tensor `name` as float32, in memory of its own."""
        info = self.tensors.get(name)
        if info is None:
            raise _damaged(self.path, f"tensor {name} must be there", "no such tensor", f"{len(self.tensors)} others")
        raw = np.frombuffer(self._map, np.uint8, info.num_bytes, info.offset).reshape(-1, info.kind.size)
        with np.errstate(invalid="ignore", over="ignore"):  # whoever uses the weights checks that they are finite
            return info.kind.decode(raw).reshape(info.shape)


class _Cursor:
    """Reads values one after another and never beyond the end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 0

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise _damaged(self.path, f"truncated at byte {self.at}", f"{len(self.data)} bytes", f"{count} more")
        self.at += count
        return self.data[self.at - count : self.at]

    def scalar(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(code)))[0]

    def string(self) -> str:
        raw = self.take(self.scalar("Q"))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as cause:
            raise _damaged(self.path, f"string before byte {self.at}", cause, "UTF-8") from None

    def value(self, kind: int, depth: int = 0) -> Value:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind == _BOOL:
            return self._boolean(self.take(1))[0]
        if kind == _ARRAY and depth < _MAX_NESTING:
            return self._array(depth)
        raise _damaged(self.path, f"value type before byte {self.at}", kind, "a type of the format")

    def _array(self, depth: int) -> list[Any]:
        kind, count = self.scalar("I"), self.scalar("Q")
        if kind in _SCALARS:
            code = _SCALARS[kind]
            raw = self.take(count * struct.calcsize(code))
            return np.frombuffer(raw, f"<{np.dtype(code).str[1:]}").tolist()
        if kind == _BOOL:
            return self._boolean(self.take(count))
        return [self.value(kind, depth + 1) for _ in range(count)]

    def _boolean(self, raw: bytes) -> list[bool]:
        if raw.strip(b"\0\1"):
            raise _damaged(self.path, f"boolean before byte {self.at}", "another byte", "0 or 1")
        return [byte == 1 for byte in raw]


def _parse(cursor: _Cursor) -> tuple[dict[str, Value], dict[str, TensorInfo]]:
    path = cursor.path
    if (magic := cursor.take(4)) != _MAGIC:
        raise _damaged(path, "not a GGUF file", magic, _MAGIC)
    if (version := cursor.scalar("I")) not in (2, 3):
        raise _damaged(path, "version", version, "2 or 3, little endian")
    num_tensors, num_entries = cursor.scalar("Q"), cursor.scalar("Q")
    metadata: dict[str, Value] = {}
    for _ in range(num_entries):
        key = cursor.string()
        if key in metadata:
            raise _damaged(path, "metadata keys are distinct", f"{key!r} twice", "once")
        metadata[key] = cursor.value(cursor.scalar("I"))
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise _damaged(path, "general.alignment", alignment, "a power of two")
    relative = [_tensor_info(cursor) for _ in range(num_tensors)]
    start = -(-cursor.at // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    end = start
    for info in sorted(relative, key=lambda info: info.offset):
        placed = TensorInfo(info.name, info.kind, info.shape, start + info.offset)
        if info.name in tensors or placed.offset % alignment or placed.offset < end:
            raise _damaged(path, f"tensor {info.name}", f"offset {info.offset}", "distinct, aligned, not overlapping")
        end = placed.offset + placed.num_bytes
        if end > len(cursor.data):
            raise _damaged(path, f"tensor {info.name} is truncated", f"{len(cursor.data)} bytes", f"at least {end}")
        tensors[info.name] = placed
    return metadata, tensors


def _tensor_info(cursor: _Cursor) -> TensorInfo:
    name, dimensions = cursor.string(), cursor.scalar("I")
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise _damaged(cursor.path, f"tensor {name}: dimensions", dimensions, f"1 to {_MAX_DIMENSIONS}")
    shape = tuple(cursor.scalar("Q") for _ in range(dimensions))[::-1]
    number, offset = cursor.scalar("I"), cursor.scalar("Q")
    kind = KINDS.get(number)
    if kind is None:
        known = ", ".join(kind.name for kind in KINDS.values())
        raise _damaged(cursor.path, f"tensor {name}: storage type", number, f"one of {known}")
    if not all(shape) or shape[-1] % kind.block:
        raise _damaged(cursor.path, f"tensor {name}: shape", shape, f"rows of whole blocks of {kind.block}")
    return TensorInfo(name, kind, shape, offset)


def _half(raw: np.ndarray) -> np.ndarray:
    """The fp16 in each row of two bytes, as float32 [B, 1]."""
    return np.ascontiguousarray(raw).view("<f2").astype(np.float32)


def _nibbles(raw: np.ndarray) -> np.ndarray:
    """Low halves of the bytes, then high halves: [B, n] -> [B, 2n]."""
    return np.concatenate([raw & 15, raw >> 4], axis=1)


def _f32(raw: np.ndarray) -> np.ndarray:
    return raw.view("<f4").astype(np.float32)  # astype copies: the file may be closed afterwards


def _f16(raw: np.ndarray) -> np.ndarray:
    return raw.view("<f2").astype(np.float32)


def _bf16(raw: np.ndarray) -> np.ndarray:
    return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _q4_0(raw: np.ndarray) -> np.ndarray:
    return _half(raw[:, :2]) * (_nibbles(raw[:, 2:]).astype(np.int8) - np.int8(8)).astype(np.float32)


def _q4_1(raw: np.ndarray) -> np.ndarray:
    return _half(raw[:, :2]) * _nibbles(raw[:, 4:]).astype(np.float32) + _half(raw[:, 2:4])


def _q8_0(raw: np.ndarray) -> np.ndarray:
    return _half(raw[:, :2]) * raw[:, 2:].view(np.int8).astype(np.float32)


def _q6_k(raw: np.ndarray) -> np.ndarray:
    """256 weights: low 4 bits [128], high 2 bits [64], 16 scales int8, one fp16 scale; two halves of 128 weights."""
    low, high = raw[:, :128].reshape(-1, 2, 1, 64), raw[:, 128:192].reshape(-1, 2, 1, 32)
    low_B2464 = low >> np.array([0, 4], np.uint8).reshape(1, 1, 2, 1) & 15
    high_B2432 = (high >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1) & 3) << 4
    quants = (low_B2464.reshape(-1, 2, 4, 32) | high_B2432).astype(np.int8) - np.int8(32)
    scales = _half(raw[:, 208:210]) * raw[:, 192:208].view(np.int8).astype(np.float32)
    return scales.reshape(-1, 16, 1) * quants.reshape(-1, 16, 16).astype(np.float32)


KINDS = {
    0: Kind("F32", 1, 4, _f32),
    1: Kind("F16", 1, 2, _f16),
    2: Kind("Q4_0", 32, 18, _q4_0),
    3: Kind("Q4_1", 32, 20, _q4_1),
    8: Kind("Q8_0", 32, 34, _q8_0),
    14: Kind("Q6_K", 256, 210, _q6_k),
    30: Kind("BF16", 1, 2, _bf16),
}
"""ggml's number of a storage type -> how to read it."""


def _damaged(path: Path, rule: str, got: object, expected: object) -> ModelError:
    do = "Download the file again"
    return ModelError(message(f"GGUF ({path.name})", rule, got=got, expected=expected, do=do))
