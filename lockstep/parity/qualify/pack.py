"""A repro pack: one small zip that holds a failing case, and says how to run it again elsewhere.

In: a `Case`. Out: bytes that depend on the case alone, and back; whatever is not such a zip, whole, is refused.

    README.txt       what it is, and what to run
    old.json         settings of OLD              new.json        settings of NEW
    case.json        ids, prompts, lengths, verdict, facts
    *.npy            prompt_ids, token_ids, old_logprobs, new_logprobs: all completions in a row
    manifest.json    size and SHA-256 of each of these
"""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import orjson

from lockstep.errors import InputError, message
from lockstep.parity.qualify.case import DTYPES, Case
from lockstep.parity.qualify.difference import shown
from lockstep.parity.qualify.members import case_of, members_of
from lockstep.trace.durable import replace_file, storage

SCHEMA = "lockstep.qualify.pack/1"
MOST_BYTES = 1_000_000
"""Of a pack."""

MOST_UNPACKED = 16_000_000
"""Of its members together; logprobs hardly compress, so that no honest pack comes near."""

MANIFEST = "manifest.json"
MEMBERS = frozenset({"README.txt", "case.json", "new.json", "old.json", *(f"{name}.npy" for name in DTYPES)})

_TIME = (1980, 1, 1, 0, 0, 0)  # the oldest that a zip can say
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError,
    OverflowError,
)  # fmt: skip
"""What reading a damaged zip may raise."""


def pack(case: Case) -> bytes:
    """The zip. Equal cases give equal bytes (with the same zlib).

    Raises `InputError` if it would be larger than `MOST_BYTES`, holds a value that is not plain, or a setting of which
    only one side tells the value.
    """
    members = members_of(case)
    told = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in sorted(members.items())
    }
    members[MANIFEST] = orjson.dumps({"schema": SCHEMA, "members": told}, option=orjson.OPT_INDENT_2)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(members):
            entry = zipfile.ZipInfo(name, _TIME)
            entry.create_system, entry.external_attr = 3, 0o100644 << 16  # as Unix writes it, on any system
            archive.writestr(entry, members[name], zipfile.ZIP_DEFLATED, 9)
        sizes = {entry.filename: entry.compress_size for entry in archive.infolist()}
    data = buffer.getvalue()
    unpacked = sum(len(member) for member in members.values())
    if len(data) > MOST_BYTES or unpacked > MOST_UNPACKED:
        raise _too_large(case, len(data), unpacked, sizes)
    return data


def write(path: Path, case: Case) -> int:
    """Write the pack as `path`, atomically; how many bytes it has. Raises as `pack` does, and `StorageError`."""
    data = pack(case)
    replace_file(path, data)
    return len(data)


def read(path: Path) -> Case:
    """The case that a pack holds, every member checked against its digest before it is looked at.

    Nothing is written, and no more than `MOST_UNPACKED` bytes are unpacked. Raises `InputError` for what is no pack,
    or a damaged one; `StorageError` if it cannot be read. A digest shows damage, not who made the pack.
    """
    with storage(path), path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise _refusal(path, "it must be small", f"more than {MOST_BYTES:,} bytes", f"at most {MOST_BYTES:,} bytes")
    members = _unpacked(path, data)
    _check_digests(path, members)
    try:
        return case_of(members)
    except (ValueError, TypeError, KeyError) as cause:
        raise _refusal(path, "its members must fit together", str(cause), "the members of one case") from cause


def _unpacked(path: Path, data: bytes) -> dict[str, bytes]:
    """All members by name."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            _check_entries(path, entries)
            return {entry.filename: _member(path, archive, entry) for entry in entries}
    except InputError:
        raise
    except _DAMAGE as cause:
        raise _refusal(path, "it must be a whole zip", str(cause) or type(cause).__name__, "a zip") from cause


def _check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    """Refuse by what the zip says of itself, before anything is unpacked."""
    names = sorted(entry.filename for entry in entries)
    expected = sorted({*MEMBERS, MANIFEST})
    if names != expected:
        strange = [name for place, name in enumerate(names) if name not in expected or name in names[:place]]
        missing = [name for name in expected if name not in names]
        got = [f"{shown(name)} too much" for name in strange[:3]] + [f"no {name}" for name in missing[:3]]
        raise _refusal(path, "it must hold the members of a pack and no others", ", ".join(got), ", ".join(expected))
    for entry in entries:
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or entry.flag_bits & 1:
            got = "encryption" if entry.flag_bits & 1 else f"method {entry.compress_type}"
            raise _refusal(path, f"{entry.filename} must be stored or deflated", got, "method 0 or 8, no password")
    total = sum(entry.file_size for entry in entries)
    if total > MOST_UNPACKED:
        raise _refusal(path, "it must not swell", f"{total:,} bytes unpacked", f"at most {MOST_UNPACKED:,}")


def _member(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Its bytes, of which no more are unpacked than it says it has."""
    with archive.open(entry) as file:
        data = file.read(entry.file_size + 1)
    if len(data) != entry.file_size:
        got, expected = f"{len(data):,} bytes", f"{entry.file_size:,} bytes"
        raise _refusal(path, f"{entry.filename} must be as long as the zip says", got, expected)
    return data


def _check_digests(path: Path, members: Mapping[str, bytes]) -> None:
    manifest = _json(members[MANIFEST])
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        schema = manifest.get("schema") if isinstance(manifest, dict) else None
        raise _refusal(path, f"its {MANIFEST} must be of a known kind", f"schema {shown(schema)}", f"schema {SCHEMA}")
    told = manifest.get("members")
    if not isinstance(told, dict) or told.keys() != MEMBERS:
        raise _refusal(path, f"its {MANIFEST} must list its members", shown(told), ", ".join(sorted(MEMBERS)))
    for name in sorted(MEMBERS):
        seen = {"bytes": len(members[name]), "sha256": hashlib.sha256(members[name]).hexdigest()}
        if told[name] != seen:
            rule = f"{name} must have the digest of its manifest"
            raise _refusal(path, rule, shown(seen, 120), shown(told[name], 120))


def _json(data: bytes) -> object:
    """The JSON value; None for what is no JSON."""
    try:
        return orjson.loads(data)
    except ValueError:
        return None


def _too_large(case: Case, size: int, unpacked: int, sizes: Mapping[str, int]) -> InputError:
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:3]
    parts = ", ".join(f"{name} {count:,}" for name, count in largest)
    tokens = sum(len(completion.token_ids) for completion in case.completions)
    got = f"{size:,} bytes ({unpacked:,} unpacked; {parts}) of {len(case.completions)} completions, {tokens:,} tokens"
    expected = f"at most {MOST_BYTES:,} bytes ({MOST_UNPACKED:,} unpacked)"
    do = "Keep fewer completions, those that differ most, or cut them after the first token that differs"
    return InputError(message("repro pack (new)", "it must stay small", got=got, expected=expected, do=do))


def _refusal(path: Path, rule: str, got: str, expected: str) -> InputError:
    do = "Get the pack anew from where it was made; nothing of this one was used"
    return InputError(message(f"repro pack ({path})", rule, got=got, expected=expected, do=do))
