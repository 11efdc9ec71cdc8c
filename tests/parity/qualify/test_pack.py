"""A pack gives back what was put in, has the same bytes every time, and no damaged or foreign zip is taken for one."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.errors import InputError, StorageError
from lockstep.parity.qualify import pack as packs
from lockstep.parity.qualify.case import DTYPES, Case, Completion
from lockstep.parity.qualify.difference import differences
from lockstep.parity.qualify.members import array_of, case_of, members_of, npy
from lockstep.parity.qualify.pack import MANIFEST, MEMBERS, MOST_BYTES, MOST_UNPACKED, pack, read, write

HOUSE = re.compile(r"^repro pack \(.+\): .+ - got .+, expected .+\. .+\.$", re.DOTALL)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
FLOATS = st.floats(width=32)


@st.composite
def completions(draw):
    tokens = draw(st.lists(st.tuples(st.integers(-(2**31), 2**31 - 1), FLOATS, FLOATS), max_size=6))
    return Completion(
        draw(TEXT),
        np.array(draw(st.lists(st.integers(0, 2**31 - 1), max_size=6)), np.int32),
        np.array([token for token, _, _ in tokens], np.int32),
        np.array([old for _, old, _ in tokens], np.float32),
        np.array([new for _, _, new in tokens], np.float32),
        draw(TEXT),
    )


@st.composite
def cases(draw):
    value = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(-1e9, 1e9) | TEXT | st.lists(TEXT)
    names = draw(st.lists(TEXT, max_size=4, unique=True))
    old, new = ({name: draw(value) for name in names} for _ in range(2))
    facts = draw(st.dictionaries(TEXT, TEXT, max_size=3))
    return Case(old, new, draw(st.lists(completions(), max_size=4)), draw(TEXT), draw(TEXT), facts)


def small(tokens: int = 40, count: int = 2) -> Case:
    draws = np.random.Generator(np.random.Philox(7))
    ids = draws.integers(0, 1000, tokens).astype(np.int32)
    one = [-draws.random(tokens, np.float32) for _ in range(2 * count)]
    return Case(
        {"logprobs_mode": "processed_logprobs", "seed": 1},
        {"logprobs_mode": "raw_logprobs", "seed": 1},
        [Completion(f"r{i}", ids[:5], ids, one[2 * i], one[2 * i + 1], f"What is {i}?") for i in range(count)],
        "NEW differs from OLD; restored by 1 setting: logprobs_mode=processed_logprobs (9 trials)",
        "lockstep qualify old.toml new.toml\n--prompts case.json",
        {"torch": "2.13.0"},
    )


def equal(one: Case, other: Case) -> bool:
    """Bit for bit."""
    return members_of(one) == members_of(other)


def members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(contents, method=zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in contents:
            archive.writestr(name, data)
    return buffer.getvalue()


def forged(**changes) -> bytes:
    """A pack with other members, and digests that fit them."""
    contents = members(pack(small())) | {name.replace("_json", ".json"): data for name, data in changes.items()}
    told = {n: {"bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in contents.items() if n in MEMBERS}
    contents[MANIFEST] = orjson.dumps({"schema": packs.SCHEMA, "members": told})
    return zipped(contents.items())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "case.zip"


def refused(path, data: bytes) -> str:
    path.write_bytes(data)
    before = sorted(path.parent.iterdir())
    with pytest.raises(InputError) as caught:
        read(path)
    assert HOUSE.match(str(caught.value)), str(caught.value)
    assert sorted(path.parent.iterdir()) == before, "nothing is unpacked to disk"
    return str(caught.value)


class TestRoundTrip:
    @given(cases())
    def test_gives_back_what_was_put_in(self, tmp_path_factory, case):
        path = tmp_path_factory.mktemp("pack") / "case.zip"
        assert write(path, case) == path.stat().st_size
        again = read(path)
        assert equal(again, case)
        assert (again.old, again.new, again.facts) == (case.old, case.new, case.facts)
        assert (again.verdict, again.rerun) == (case.verdict, case.rerun)
        for one, other in zip(again.completions, case.completions, strict=True):
            assert (one.id, one.prompt) == (other.id, other.prompt)
            for name in DTYPES:
                assert getattr(one, name).tobytes() == getattr(other, name).tobytes()

    @given(cases())
    def test_equal_cases_have_equal_bytes(self, case):
        turned = Case(
            dict(reversed(case.old.items())),
            dict(reversed(case.new.items())),
            tuple(case.completions),
            case.verdict,
            case.rerun,
            case.facts,
        )
        assert pack(case) == pack(turned)

    def test_the_zip_is_ordinary(self):
        with zipfile.ZipFile(io.BytesIO(pack(small()))) as archive:
            assert archive.testzip() is None
            assert archive.namelist() == sorted({*MEMBERS, MANIFEST})
            assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
            for entry in archive.infolist():
                assert entry.external_attr >> 16 == 0o100644

    def test_numpy_reads_the_arrays(self):
        contents = members(pack(small()))
        for name, dtype in DTYPES.items():
            array = np.load(io.BytesIO(contents[f"{name}.npy"]), allow_pickle=False)
            assert array.dtype == np.dtype(dtype)
            joined = np.concatenate([getattr(one, name) for one in small().completions])
            np.testing.assert_array_equal(array, joined)

    def test_the_readme_says_what_to_run_and_what_differs(self):
        text = members(pack(small()))["README.txt"].decode()
        assert "    lockstep qualify old.toml new.toml\n    --prompts case.json\n" in text
        assert "    logprobs_mode: processed_logprobs in OLD, raw_logprobs in NEW\n" in text
        assert "seed" not in text
        assert "restored by 1 setting" in text
        assert "    torch: 2.13.0\n" in text
        assert re.search(r"    r1: 40 tokens, 0\.\d+\n", text)

    def test_the_readme_has_no_line_that_a_name_made(self, hostile):
        case = small()
        sides = dict.fromkeys(hostile[:-1], 1), dict.fromkeys(hostile[:-1], 2)
        facts = dict(zip(hostile[:-1], hostile[:-1], strict=True))
        one = Case(*sides, case.completions, hostile[4], hostile[5], facts)
        text = members(pack(one))["README.txt"].decode()
        assert len(text.splitlines()) == text.count("\n")
        assert all(letter.isprintable() or letter == "\n" for letter in text)


class TestRefusalToWrite:
    def test_a_large_case_is_refused_with_figures(self, path):
        case = small(tokens=200_000)
        with pytest.raises(InputError) as caught:
            write(path, case)
        text = str(caught.value)
        assert HOUSE.match(text)
        assert re.search(r"got \d,\d{3},\d{3} bytes \(", text)
        assert "logprobs.npy" in text
        assert "2 completions, 400,000 tokens" in text
        assert f"at most {MOST_BYTES:,} bytes" in text
        assert not path.exists()

    def test_a_case_that_would_swell_is_refused(self):
        case = small()
        swollen = Case(case.old, case.new, case.completions, "x" * (MOST_UNPACKED + 1), "", {})
        with pytest.raises(InputError, match=r"unpacked"):
            pack(swollen)

    def test_values_that_are_not_plain_and_settings_of_one_side_are_refused(self):
        case = small()
        with pytest.raises(InputError, match="values must be plain"):
            pack(Case({"a": object()}, {"a": 1}, case.completions, "", ""))
        with pytest.raises(InputError, match="no a of NEW"):
            pack(Case({"a": 1}, {}, case.completions, "", ""))

    def test_a_pack_that_cannot_be_written_is_an_error_of_storage(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(StorageError):
            write(tmp_path / "file" / "case.zip", small())


class TestForeign:
    @pytest.mark.parametrize("data", [b"", b"hello", b"PK\x03\x04", b"PK\x05\x06" + b"\0" * 18, b"\0" * 1000])
    def test_what_is_no_zip_or_an_empty_one_is_refused(self, path, data):
        refused(path, data)

    def test_a_file_that_is_not_there_is_an_error_of_storage(self, path):
        with pytest.raises(StorageError):
            read(path)

    def test_a_large_file_is_refused_before_it_is_opened(self, path):
        assert "more than 1,000,000 bytes" in refused(path, pack(small()) + b"\0" * MOST_BYTES)

    @pytest.mark.parametrize(
        "name", ["../evil", "/etc/passwd", "a/../../b", "c:\\x", "README.txt/", "readme.txt", "..\\x"]
    )
    def test_a_member_of_another_name_is_refused(self, path, name):
        contents = [*members(pack(small())).items(), (name, b"x")]
        assert "must hold the members of a pack and no others" in refused(path, zipped(contents))

    @pytest.mark.parametrize("name", sorted({*MEMBERS, MANIFEST}))
    def test_a_missing_member_is_named(self, path, name):
        contents = [(key, data) for key, data in members(pack(small())).items() if key != name]
        assert f"got no {name}" in refused(path, zipped(contents))

    def test_a_member_twice_is_refused(self, path):
        contents = [*members(pack(small())).items()]
        with pytest.warns(UserWarning, match="Duplicate name"):
            data = zipped([*contents, ("old.json", b"{}")])
        assert "old.json too much" in refused(path, data)

    @pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_other_methods_are_refused(self, path, method):
        assert "must be stored or deflated" in refused(path, zipped(members(pack(small())).items(), method))

    def test_stored_members_are_as_good(self, path):
        path.write_bytes(zipped(members(pack(small())).items(), zipfile.ZIP_STORED))
        assert equal(read(path), small())

    def test_an_encrypted_member_is_refused(self, path):
        data = bytearray(pack(small()))
        place = data.index(b"PK\x01\x02")
        data[place + 8] |= 1  # the flag in the directory
        assert "encryption" in refused(path, bytes(data))

    def test_a_bomb_is_refused_before_it_is_unpacked(self, path, monkeypatch):
        contents = members(pack(small())) | {"case.json": b" " * (MOST_UNPACKED + 1)}
        monkeypatch.setattr(packs, "_member", lambda *_: pytest.fail("something was unpacked"))
        assert "must not swell" in refused(path, zipped(contents.items()))

    def test_a_bomb_that_lies_about_its_size_is_cut_off(self, path):
        contents = members(pack(small())) | {"case.json": b" " * (MOST_UNPACKED + 1)}
        data = bytearray(zipped(contents.items()))
        size = (MOST_UNPACKED + 1).to_bytes(4, "little")
        assert data.count(size) == 2
        refused(path, bytes(data.replace(size, (100).to_bytes(4, "little"))))


class TestDamage:
    @pytest.mark.parametrize("name", sorted(MEMBERS))
    def test_a_changed_member_is_refused_by_its_digest(self, path, name):
        contents = members(pack(small()))
        changed = bytearray(contents[name])
        changed[len(changed) // 2] ^= 1
        contents[name] = bytes(changed)
        assert f"{name} must have the digest of its manifest" in refused(path, zipped(contents.items()))

    @pytest.mark.parametrize(
        "manifest",
        [
            b"",
            b"[]",
            b"{}",
            b'{"schema": "other/1"}',
            b'{"schema": "lockstep.qualify.pack/1"}',
            b'{"schema": "lockstep.qualify.pack/1", "members": {"old.json": {}}}',
            b'{"schema": "lockstep.qualify.pack/1", "members": 3}',
        ],
    )
    def test_a_damaged_manifest_is_refused(self, path, manifest):
        contents = members(pack(small())) | {MANIFEST: manifest}
        assert MANIFEST in refused(path, zipped(contents.items()))

    @settings(max_examples=300)
    @given(st.data())
    def test_random_damage_gives_the_same_case_or_a_refusal(self, tmp_path_factory, data):
        whole = WHOLE
        damaged = bytearray(whole)
        kind = data.draw(st.sampled_from(["flip", "cut", "insert", "zero"]))
        place = data.draw(st.integers(0, len(whole) - 1))
        if kind == "flip":
            for _ in range(data.draw(st.integers(1, 4))):
                damaged[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
        elif kind == "cut":
            del damaged[place : place + data.draw(st.integers(1, len(whole)))]
        elif kind == "insert":
            damaged[place:place] = data.draw(st.binary(min_size=1, max_size=40))
        else:
            end = min(len(whole), place + data.draw(st.integers(1, 60)))
            damaged[place:end] = bytes(end - place)
        path = tmp_path_factory.getbasetemp() / "fuzzed.zip"
        path.write_bytes(damaged)
        try:
            case = read(path)
        except InputError as error:
            assert HOUSE.match(str(error))
        else:
            assert equal(case, small()), "what is read is what was written"

    @settings(max_examples=150)
    @given(st.data())
    def test_random_damage_to_the_directory_of_the_zip_is_no_crash(self, tmp_path_factory, data):
        damaged = bytearray(WHOLE)
        start = damaged.index(b"PK\x01\x02")
        for _ in range(data.draw(st.integers(1, 3))):
            damaged[data.draw(st.integers(start, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        path = tmp_path_factory.getbasetemp() / "directory.zip"
        path.write_bytes(damaged)
        try:
            assert equal(read(path), small())
        except InputError as error:
            assert HOUSE.match(str(error))


WHOLE = pack(small())


class TestForged:
    """Whoever makes a pack can make digests that fit; what is inside is still checked."""

    def test_the_forger_of_these_tests_can_make_a_good_pack(self, path):
        path.write_bytes(forged())
        assert equal(read(path), small())

    @pytest.mark.parametrize("name", ["old_json", "new_json", "case_json"])
    @pytest.mark.parametrize("data", [b"", b"[]", b"3", b"null", b"{", b"[" * 100_000, b"\xff", b'{"a": NaN}'])
    def test_a_json_member_that_is_no_table_is_refused(self, path, name, data):
        assert "must fit together" in refused(path, forged(**{name: data}))

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("completions", None),
            ("completions", [3]),
            ("completions", [{}]),
            ("completions", {"a": 1}),
            ("completions", []),
            ("completions", [{"id": "a", "prompt": "", "num_prompt": 10, "num_tokens": 79}]),
            ("completions", [{"id": "a", "prompt": "", "num_prompt": -10, "num_tokens": 80}]),
            ("completions", [{"id": "a", "prompt": "", "num_prompt": 10.0, "num_tokens": 80}]),
            ("completions", [{"id": "a", "prompt": "", "num_prompt": 2**63, "num_tokens": 2**63}]),
            ("completions", [{"id": 1, "prompt": "", "num_prompt": 10, "num_tokens": 80}]),
            ("completions", [{"id": "a", "prompt": None, "num_prompt": 10, "num_tokens": 80}]),
            ("facts", []),
            ("facts", {"a": 1}),
            ("facts", None),
            ("verdict", 3),
            ("rerun", None),
        ],
    )
    def test_a_case_that_does_not_fit_is_refused(self, path, key, value):
        about = orjson.loads(members(WHOLE)["case.json"]) | {key: value}
        assert "must fit together" in refused(path, forged(case_json=orjson.dumps(about)))

    @pytest.mark.parametrize(
        "array",
        [b"", b"\x93NUMPY", npy(np.zeros(3, np.float32), "<f4"), npy(np.zeros(3, np.int32), "<i4")[:-1]],
    )
    def test_an_array_of_another_kind_is_refused(self, path, array):
        assert "must fit together" in refused(path, forged(**{"token_ids.npy": array}))

    def test_an_array_of_objects_is_not_unpickled(self, path):
        buffer = io.BytesIO()
        np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
        assert "must fit together" in refused(path, forged(**{"token_ids.npy": buffer.getvalue()}))


class TestArrays:
    @given(st.lists(FLOATS, max_size=30))
    def test_survive_bit_for_bit(self, values):
        array = np.array(values, np.float32)
        assert array_of(npy(array, "<f4"), "<f4").tobytes() == array.tobytes()
        assert np.load(io.BytesIO(npy(array, "<f4"))).tobytes() == array.tobytes()

    def test_a_header_that_claims_more_than_there_is_is_refused(self):
        huge = npy(np.zeros(0, np.int32), "<i4").replace(b"(0,)", b"(999999999999,)")
        with pytest.raises(ValueError, match="not as long as it says"):
            array_of(huge, "<i4")

    def test_what_is_read_cannot_be_written_to(self):
        with pytest.raises(ValueError, match="read-only"):
            array_of(npy(np.zeros(2, np.int32), "<i4"), "<i4")[0] = 1


def test_a_case_of_no_completions_is_a_case(path):
    write(path, Case({}, {}, [], "", ""))
    assert list(read(path).completions) == []


def test_both_configurations_can_be_compared_again(path):
    write(path, small())
    case = read(path)
    assert [d.name for d in differences(case.old, case.new, ())] == ["logprobs_mode"]
    assert equal(case_of(members_of(case)), case)
