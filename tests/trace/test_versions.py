"""Which weights a run had when: by its metrics and its checkpoints, whatever state these are in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lockstep.errors import InputError
from lockstep.trace.versions import published, saved
from lockstep.weight_update import WeightVersion

DIGEST = "ab" * 32


def test_lines_that_name_a_version_are_taken():
    lines = [
        {"step": 1, "weight_version": 13, "weight_digest": DIGEST},
        {"step": 2, "reward": 1.0},
        {"step": 3, "weight_version": None, "weight_digest": DIGEST},
        {"step": 4, "weight_version": 0, "weight_digest": DIGEST},
    ]
    assert published(lines) == {1: WeightVersion(13, DIGEST), 4: WeightVersion(0, DIGEST)}
    assert published([]) == {}


def test_a_digest_that_is_none_is_an_error():
    with pytest.raises(InputError, match="a version has a number >= 0 and a digest"):
        published([{"step": 1, "weight_version": 1, "weight_digest": "abc"}])


def state(folder: Path, step: int, text: str) -> None:
    file = folder / f"step_{step}" / "state.json"
    file.parent.mkdir(parents=True)
    file.write_text(text)


def test_checkpoints_say_what_they_hold(tmp_path: Path):
    state(tmp_path, 0, json.dumps({"step": 0, "version": {"number": 12, "digest": DIGEST}}))
    state(tmp_path, 10, json.dumps({"step": 10, "version": {"number": 22, "digest": DIGEST}, "more": 1}))
    assert saved(tmp_path) == {0: WeightVersion(12, DIGEST), 10: WeightVersion(22, DIGEST)}
    assert saved(tmp_path / "nowhere") == {}


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "{}", '{"step": 1}', '{"step": "x", "version": {}}', '{"step": 1, "version": {"number": 1}}',
     '{"step": 1, "version": {"number": 1, "digest": "x"}}', '{"step": 1, "version": 3}'],
)  # fmt: skip
def test_a_damaged_state_says_nothing(tmp_path: Path, text: str):
    state(tmp_path, 1, text)
    assert saved(tmp_path) == {}
