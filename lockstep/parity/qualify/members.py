"""What is inside of a repro pack: the bytes of each member, and the case that they are of.

In: a `Case`, or members by name. Out: the other. Arrays are NumPy's .npy files, written and read by the bytes of their
fixed header, so that no header from elsewhere is ever interpreted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from lockstep.parity.qualify.case import DTYPES, Case, Completion
from lockstep.parity.qualify.difference import differences, plain, shown
from lockstep.parity.qualify.qualification import label, nats

_JSON = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS
_HEADER = 118
"""Bytes of a header's text; with what precedes it 128, to which NumPy aligns."""


def members_of(case: Case) -> dict[str, bytes]:
    """Bytes by name. Raises `InputError` for a value that is not plain, or a setting that only one side tells."""
    about = {
        "completions": [
            {"id": one.id, "prompt": one.prompt, "num_prompt": len(one.prompt_ids), "num_tokens": len(one.token_ids)}
            for one in case.completions
        ],
        "verdict": plain("verdict", case.verdict),
        "rerun": plain("rerun", case.rerun),
        "facts": plain("facts", dict(case.facts)),
    }
    members = {
        "old.json": _settings(case.old),
        "new.json": _settings(case.new),
        "case.json": orjson.dumps(about, option=_JSON),
        "README.txt": _readme(case).encode(),
    }
    for name, dtype in DTYPES.items():
        arrays = [getattr(one, name) for one in case.completions]
        members[f"{name}.npy"] = npy(np.concatenate(arrays) if arrays else np.zeros(0, dtype), dtype)
    return members


def case_of(members: Mapping[str, bytes]) -> Case:
    """The case. Raises `ValueError`, `TypeError` or `KeyError` for members that are not those of one."""
    old, new, about = (orjson.loads(members[name]) for name in ("old.json", "new.json", "case.json"))
    if not (isinstance(old, dict) and isinstance(new, dict) and isinstance(about, dict)):
        raise ValueError("a JSON member is no table")
    facts: dict[str, Any] = about["facts"] if isinstance(about["facts"], dict) else {"": None}
    if not all(isinstance(word, str) for word in (about["verdict"], about["rerun"], *facts.values())):
        raise ValueError("verdict, rerun or facts is no text")
    return Case(old, new, _completions(about["completions"], members), about["verdict"], about["rerun"], facts)


def npy(array: np.ndarray, dtype: str) -> bytes:
    """A .npy file (format 1.0) of a one-dimensional array."""
    return _header(len(array), dtype) + np.ascontiguousarray(array, dtype).tobytes()


def array_of(data: bytes, dtype: str) -> np.ndarray:
    """The array of a file that `npy` wrote, read-only. Raises `ValueError` for any other file."""
    body = data[10 + _HEADER :]
    count, rest = divmod(len(body), np.dtype(dtype).itemsize)
    if rest or data[: 10 + _HEADER] != _header(count, dtype):
        raise ValueError(f"an array is not of {dtype} in one dimension, or not as long as it says")
    return np.frombuffer(body, dtype)


def _header(count: int, dtype: str) -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({count},), }}"
    return b"\x93NUMPY\x01\x00" + _HEADER.to_bytes(2, "little") + text.ljust(_HEADER - 1).encode() + b"\n"


def _settings(side: Mapping[str, object]) -> bytes:
    return orjson.dumps({plain(name, name): plain(name, value) for name, value in side.items()}, option=_JSON)


def _completions(told: Any, members: Mapping[str, bytes]) -> tuple[Completion, ...]:
    counts = {"num_prompt": [one["num_prompt"] for one in told], "num_tokens": [one["num_tokens"] for one in told]}
    if not all(type(count) is int and count >= 0 for several in counts.values() for count in several):
        raise ValueError("a length is no whole number")
    parts: dict[str, list[np.ndarray]] = {}
    for name, dtype in DTYPES.items():
        array = array_of(members[f"{name}.npy"], dtype)
        lengths = counts["num_prompt" if name == "prompt_ids" else "num_tokens"]
        if sum(lengths) != len(array):
            raise ValueError(f"{name} has {len(array)} entries where lengths add up to {sum(lengths)}")
        parts[name] = np.split(array, np.cumsum(lengths)[:-1]) if lengths else []
    names = [(one["id"], one["prompt"]) for one in told]
    if not all(isinstance(word, str) for pair in names for word in pair):
        raise ValueError("an id or a prompt is no text")
    return tuple(
        Completion(name, **{key: arrays[place] for key, arrays in parts.items()}, prompt=prompt)
        for place, (name, prompt) in enumerate(names)
    )


def _readme(case: Case) -> str:
    tokens = sum(len(one.token_ids) for one in case.completions)
    differing = differences(case.old, case.new, ())
    lines = [
        "A failing case of `lockstep qualify`, made to fail again elsewhere.",
        "",
        f"Verdict: {label(case.verdict)}",
        f"Holds:   {len(case.completions)} completions, {tokens} tokens, with the logprobs that OLD and NEW gave them",
        "",
        "To run it again:",
        "",
        *(f"    {label(line)}" for line in case.rerun.splitlines() or ["(no command was given)"]),
        "",
        "Settings that differ (old.json and new.json have all of them):",
        "",
        *(f"    {shown(d.name)}: {shown(d.old)} in OLD, {shown(d.new)} in NEW" for d in differing),
        "",
        "Completions (mean |NEW - OLD| over tokens, in nats):",
        "",
        *(f"    {label(one.id)}: {len(one.token_ids)} tokens, {nats(one.mean)}" for one in case.completions),
        "",
        "Where it was seen:",
        "",
        *(f"    {label(name)}: {label(value)}" for name, value in sorted(case.facts.items())),
        "",
        "The .npy files hold all completions one after another; case.json has their lengths. numpy.load reads them.",
        "manifest.json has the SHA-256 of every file: it shows damage, not who made this.",
    ]
    return "\n".join(lines) + "\n"
