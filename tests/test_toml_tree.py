"""Tables as text: what is merged wins, what is an override, and what is a value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.errors import ConfigError
from lockstep.toml_tree import merge, read_override, read_toml

keys = st.sampled_from("abc")
tables = st.recursive(st.integers(), lambda inner: st.dictionaries(keys, inner, min_size=1, max_size=3))
trees = st.dictionaries(keys, tables, max_size=3)


def leaves(tree: dict[str, Any], prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every value that is not a table, by its path."""
    found: dict[tuple[str, ...], Any] = {}
    for key, value in tree.items():
        found |= leaves(value, (*prefix, key)) if isinstance(value, dict) else {(*prefix, key): value}
    return found


@given(trees, trees)
def test_what_is_merged_wins_and_the_rest_stays(first: dict[str, Any], second: dict[str, Any]):
    merged: dict[str, Any] = {}
    merge(merged, first)
    merge(merged, second)
    expected = leaves(second)
    for path, value in leaves(first).items():
        replaced = any(path[: len(other)] == other or other[: len(path)] == path for other in expected)
        if not replaced:
            assert leaves(merged)[path] == value
    for path, value in expected.items():
        assert leaves(merged)[path] == value


@pytest.mark.parametrize(
    ("override", "tree"),
    [
        ("a=1", {"a": 1}),
        ("a.b.c=1.5", {"a": {"b": {"c": 1.5}}}),
        ("a=word", {"a": "word"}),
        ('a="1"', {"a": "1"}),
        ("a=b=c", {"a": "b=c"}),
        ("a=", {"a": ""}),
        ("a=[1, 2]", {"a": [1, 2]}),
    ],
)
def test_overrides(override: str, tree: dict[str, Any]):
    assert read_override(override) == tree


@pytest.mark.parametrize("override", ["a", "=1", "a.b.c.d.e=1"])
def test_what_names_no_key_and_value_is_refused(override: str):
    with pytest.raises(ConfigError, match="an override names a key and a value"):
        read_override(override)


def test_a_file_says_what_is_wrong_with_it(tmp_path: Path):
    with pytest.raises(ConfigError, match="must be readable"):
        read_toml(tmp_path / "nowhere.toml")
    (tmp_path / "x.toml").write_text("a = ")
    with pytest.raises(ConfigError, match="must be TOML"):
        read_toml(tmp_path / "x.toml")
    (tmp_path / "x.toml").write_text("[a]\nb = 1")
    assert read_toml(tmp_path / "x.toml") == {"a": {"b": 1}}
