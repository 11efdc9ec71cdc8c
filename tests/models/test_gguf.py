"""Our GGUF reader against the reference one, and against every way in which a file can be damaged."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lockstep.errors import ModelError
from lockstep.models.gguf import GGUF, KINDS

NAMES = {kind.name: kind for kind in KINDS.values()}
STRING, ARRAY, UINT8, UINT32, BOOL = 8, 9, 0, 4, 7


def string(text):
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def entry(key, kind, payload):
    return string(key) + struct.pack("<I", kind) + payload


def info(name, shape, kind=0, offset=0):
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def header(*, tensors=(), entries=(), magic=b"GGUF", version=3):
    return magic + struct.pack("<IQQ", version, len(tensors), len(entries)) + b"".join([*entries, *tensors])


def whole(tensors=(), entries=(), data=bytes(4096), **changes):
    """A file with its data aligned to 32 bytes."""
    start = header(tensors=tensors, entries=entries, **changes)
    return start + bytes(-len(start) % 32) + data


def opened(content, folder):
    path = Path(folder) / "x.gguf"
    path.write_bytes(content)
    return GGUF.open(path)


def test_agrees_with_the_reference_reader(small_gguf):
    reference = gguf.GGUFReader(small_gguf.path)
    with GGUF.open(small_gguf.path) as file:
        entries = {name: field.contents() for name, field in reference.fields.items() if not name.startswith("GGUF.")}
        assert file.metadata == entries
        assert list(file.tensors) == [tensor.name for tensor in reference.tensors]
        for tensor in reference.tensors:
            mine, theirs = file.read(tensor.name), gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            assert file.tensors[tensor.name].kind.name == tensor.tensor_type.name
            assert mine.dtype == np.float32
            assert mine.shape == theirs.shape == tuple(tensor.shape[::-1])
            assert np.array_equal(mine.view(np.uint32), theirs.astype(np.float32).view(np.uint32))


def test_all_types_of_metadata(tmp_path):
    path = tmp_path / "meta.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("u8", 255)
    writer.add_int8("i8", -128)
    writer.add_uint16("u16", 65535)
    writer.add_int16("i16", -32768)
    writer.add_uint32("u32", 2**32 - 1)
    writer.add_int32("i32", -(2**31))
    writer.add_uint64("u64", 2**64 - 1)
    writer.add_int64("i64", -(2**63))
    writer.add_float32("f32", 0.5)
    writer.add_float64("f64", 0.1)
    writer.add_bool("bool", True)
    writer.add_string("string", "grün")
    writer.add_array("strings", ["a", "", "b"])
    writer.add_array("numbers", [1, -2, 3])
    writer.add_array("floats", [0.5, -1.5])
    writer.add_array("flags", [True, False])
    writer.add_array("nested", [[1, 2], [3]])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GGUF.open(path) as file:
        assert file.metadata == {
            "general.architecture": "llama", "u8": 255, "i8": -128, "u16": 65535, "i16": -32768, "u32": 2**32 - 1,
            "i32": -(2**31), "u64": 2**64 - 1, "i64": -(2**63), "f32": 0.5, "f64": 0.1, "bool": True, "string": "grün",
            "strings": ["a", "", "b"], "numbers": [1, -2, 3], "floats": [0.5, -1.5], "flags": [True, False],
            "nested": [[1, 2], [3]],
        }  # fmt: skip
        assert type(file.metadata["bool"]) is bool


@given(st.sampled_from(sorted(NAMES)), st.integers(1, 9), st.data())
def test_dequantises_any_bytes_as_the_reference(name, blocks, data):
    kind = NAMES[name]
    raw = data.draw(hnp.arrays(np.uint8, (blocks, kind.size)))
    with np.errstate(all="ignore"):  # random scales may be infinite
        mine = kind.decode(raw.copy())
        theirs = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name]).astype(np.float32)
    assert np.array_equal(mine.reshape(-1), theirs.reshape(-1), equal_nan=True)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_block_sizes_are_the_formats(name):
    assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]] == (NAMES[name].block, NAMES[name].size)
    assert KINDS[gguf.GGMLQuantizationType[name].value] is NAMES[name]


def test_arrays_outlive_the_file(small_gguf):
    with GGUF.open(small_gguf.path) as file:
        arrays = {name: file.read(name) for name in file.tensors}
    for array in arrays.values():
        assert np.isfinite(array).all()
        array.fill(1.0)  # writable, and not the file


def test_an_absent_tensor(small_gguf):
    with GGUF.open(small_gguf.path) as file, pytest.raises(ModelError, match=r"tensor nothing must be there"):
        file.read("nothing")


def test_versions_2_and_3_and_alignment(tmp_path):
    values = np.arange(64, dtype=np.float32).tobytes()
    for version in (2, 3):
        with opened(whole([info("a", (8, 2)), info("b", (8,), 0, 64)], data=values, version=version), tmp_path) as file:
            assert file.read("a").tolist() == [[*range(8)], [*range(8, 16)]]
            assert file.read("b").tolist() == [*range(16, 24)]
    entries = [entry("general.alignment", UINT32, struct.pack("<I", 8))]
    start = header(tensors=[info("a", (2,))], entries=entries)
    with opened(start + bytes(-len(start) % 8) + values, tmp_path) as file:
        assert file.read("a").tolist() == [0.0, 1.0]


def nest(depth):
    return struct.pack("<IQ", ARRAY, 1) * depth + struct.pack("<IQ", UINT8, 0)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "must be readable"),
        (b"GG", "truncated at byte 0"),
        (whole(magic=b"PK\3\4"), "not a GGUF file"),
        (whole(version=1), "version - got 1, expected 2 or 3"),
        (whole(version=3 << 24), "little endian"),
        (header(entries=[b""] * 5), "truncated at byte 24"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**64 - 1, 2**64 - 1), "truncated"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**64 - 1, 0), "truncated"),
        (whole(entries=[struct.pack("<Q", 2**63) + b"x"]), "truncated"),
        (whole(entries=[entry(b"\xff", UINT8, b"\0")]), "expected UTF-8"),
        (whole(entries=[entry("a", UINT8, b"\0"), entry("a", UINT8, b"\0")]), "'a' twice"),
        (whole(entries=[entry("a", 13, b"\0")]), "value type .* got 13"),
        (whole(entries=[entry("a", BOOL, b"\2")]), "boolean"),
        (whole(entries=[entry("a", ARRAY, struct.pack("<IQ", BOOL, 3) + b"\0\1\2")]), "boolean"),
        (whole(entries=[entry("a", ARRAY, struct.pack("<IQ", UINT8, 2**62))]), "truncated"),
        (whole(entries=[entry("a", ARRAY, struct.pack("<IQ", STRING, 2**62))], data=b""), "truncated"),
        (whole(entries=[entry("a", ARRAY, struct.pack("<IQ", 99, 1))]), "value type .* got 99"),
        (whole(entries=[entry("a", ARRAY, nest(100))]), "value type .* got 9"),
        (whole(entries=[entry("general.alignment", UINT32, struct.pack("<I", 0))]), "power of two"),
        (whole(entries=[entry("general.alignment", UINT32, struct.pack("<I", 24))]), "power of two"),
        (whole(entries=[entry("general.alignment", STRING, string("32"))]), "power of two"),
        (whole([info("a", ())]), "dimensions - got 0"),
        (whole([info("a", (1,) * 5)]), "dimensions - got 5"),
        (whole([info("a", (4, 0))]), r"shape - got \(0, 4\)"),
        (whole([info("a", (33,), 3)]), "whole blocks of 32"),
        (whole([info("a", (4,), 12)]), "storage type - got 12, expected one of F32"),
        (whole([info("a", (4,), 0, 4)]), "offset 4"),
        (whole([info("a", (4,), 0, 8192)]), "tensor a is truncated"),
        (whole([info("a", (1024, 2))]), "tensor a is truncated - got .* expected at least"),
        (whole([info("a", (2**40, 2**40))]), "tensor a is truncated"),
        (whole([info("a", (8,)), info("a", (8,), 0, 32)]), "tensor a - got offset 32"),
        (whole([info("a", (16,)), info("b", (8,), 0, 32)]), "not overlapping"),
    ],
)
def test_damage_is_named(content, said, tmp_path):
    with pytest.raises(ModelError, match=r"GGUF \(x.gguf\): .*" + said):
        opened(content, tmp_path)


def test_paths_that_are_not_files(tmp_path):
    for path in (tmp_path / "absent.gguf", tmp_path):
        with pytest.raises(ModelError, match="must be readable"):
            GGUF.open(path)


FEW = [
    entry("general.architecture", STRING, string("llama")),
    entry("general.alignment", UINT32, struct.pack("<I", 32)),
    entry("strings", ARRAY, struct.pack("<IQ", STRING, 3) + string("a") + string("bc") + string("")),
    entry("flags", ARRAY, struct.pack("<IQ", BOOL, 2) + b"\0\1"),
    entry("nested", ARRAY, nest(2)),
]
TENSORS = [info("a", (8, 4)), info("b", (64,), 3, 128), info("c", (256,), 14, 192)]
GOOD = whole(TENSORS, FEW, data=np.random.Generator(np.random.Philox(1)).bytes(512))


def outcome(content):
    """Whole, and then all of it can be read; or refused. Anything else is a failure of the reader."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = opened(content, folder)
        except ModelError:
            return None
        with file:
            for name, tensor in file.tensors.items():
                assert file.read(name).shape == tensor.shape
            return dict(file.metadata), list(file.tensors)


@given(st.integers(0, len(GOOD) - 1))
@settings(max_examples=200)
def test_truncations_are_refused(length):
    end = len(header(tensors=TENSORS, entries=FEW))
    if length < end:
        assert outcome(GOOD[:length]) is None
    else:
        outcome(GOOD[:length])


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(1, 255)), min_size=1, max_size=4))
@settings(max_examples=400)
def test_flipped_bytes_are_read_or_refused(flips):
    content = bytearray(GOOD)
    for position, mask in flips:
        content[position] ^= mask
    outcome(bytes(content))


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_garbage_is_refused(tail):
    assert outcome(b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + tail) is None or len(tail) > 30
    outcome(tail)


def test_the_good_file_is_good():
    entries, tensors = outcome(GOOD)
    assert tensors == ["a", "b", "c"]
    assert entries["strings"] == ["a", "bc", ""]
    assert entries["nested"] == [[[]]]
