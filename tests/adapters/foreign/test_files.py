"""Files in the order in which a run wrote them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.adapters.foreign.files import in_order, one_folder, step_of
from lockstep.errors import InputError


def test_numbers_count_as_numbers():
    names = ["10.jsonl", "9.jsonl", "1.jsonl", "step_2/a", "step_10/a", "b", "a1b2", "a1b10", "a01"]
    ordered = [str(path) for path in in_order([Path(name) for name in names])]
    assert ordered == ["1.jsonl", "9.jsonl", "10.jsonl", "a01", "a1b2", "a1b10", "b", "step_2/a", "step_10/a"]


@given(st.lists(st.text(st.characters(exclude_characters="\0/", codec="utf-8"), min_size=1, max_size=6), max_size=6))
def test_any_names_are_ordered(names: list[str]):
    paths = [Path(name) for name in names]
    assert sorted(in_order(paths)) == sorted(paths)


def test_one_folder_is_one_run(tmp_path: Path):
    files = [tmp_path / "a" / "2.jsonl", tmp_path / "a" / "1.jsonl"]
    assert one_folder(tmp_path, files) == [files[1], files[0]]
    with pytest.raises(InputError, match=r"holds one run - got files of 2 folders \(a, val\), expected one folder"):
        one_folder(tmp_path, [*files, tmp_path / "val" / "1.jsonl"])
    many = [tmp_path / str(number) / "1.jsonl" for number in range(7)]
    with pytest.raises(InputError, match=r"7 folders \(0, 1, 2, 3, \.\.\.\)"):
        one_folder(tmp_path, many)


@pytest.mark.parametrize(
    ("path", "step"),
    [
        ("run/rollouts/step_12/train/all/traces.jsonl", 12),
        ("step_1/step_2/x", 2),
        ("run/step_x/traces.jsonl", None),
        ("run/traces_step_3.jsonl", None),
        ("step_7", None),  # a file of that name is no folder
        ("step_" + "9" * 40 + "/x", None),
    ],
)
def test_steps_of_folders(path: str, step: int | None):
    assert step_of(Path(path)) == step
