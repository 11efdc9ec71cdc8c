"""The last versions of the weights: which are held, that nothing is copied, and that a changed tensor is found."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lockstep.errors import InputError
from lockstep.models.checkpoint import digest
from lockstep.train.history import WeightHistory
from lockstep.weight_update import WeightVersion


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"norm": torch.full((4,), value), "head": torch.full((2, 3), -value)}


def published(number: int, value: float | None = None) -> tuple[WeightVersion, dict[str, torch.Tensor]]:
    params = weights(number if value is None else value)
    return WeightVersion(number, digest(params)), params


def test_the_oldest_goes_when_there_are_too_many():
    history = WeightHistory(keep=2)
    for number in (3, 4, 9):
        history.add(*published(number))
        history.check()
    assert [version.number for version in history.versions] == [4, 9]
    assert len(history) == 2
    assert sorted(history.by_number) == [4, 9]


def test_it_refers_to_the_tensors_it_is_given():
    history, (version, params) = WeightHistory(keep=1), published(0)
    history.add(version, params)
    assert history.parameters(0)["norm"] is params["norm"]
    assert history.by_number[0]["head"] is params["head"]


def test_its_tables_are_its_own():
    history, (version, params) = WeightHistory(keep=1), published(0)
    history.add(version, params)
    params["norm"] = torch.zeros(4)
    params.clear()
    history.check()
    with pytest.raises(TypeError):
        history.parameters(0)["norm"] = torch.zeros(4)  # type: ignore[index]
    with pytest.raises(TypeError):
        del history.by_number[0]  # type: ignore[attr-defined]


def test_a_table_taken_out_stays_when_a_version_goes():
    history = WeightHistory(keep=1)
    history.add(*published(0))
    before = history.by_number
    history.add(*published(1))
    assert list(before) == [0]
    assert list(history.by_number) == [1]


def test_a_tensor_changed_in_place_is_found():
    history, (version, params) = WeightHistory(keep=2), published(5)
    history.add(version, params)
    history.add(*published(6))
    params["head"][1, 2] += 1
    with pytest.raises(AssertionError, match=r"tensors of version 5@.* were changed"):
        history.check()


def test_a_version_that_is_gone_is_named():
    history = WeightHistory(keep=2)
    with pytest.raises(InputError, match=r"weight history \(version 1\): .* expected one of none"):
        history.parameters(1)
    for number in (1, 2, 3):
        history.add(*published(number))
    words = (
        r"weight history \(version 1\): only the newest 2 are kept - got no such version, expected one of 2, 3\. Keep"
    )
    with pytest.raises(InputError, match=words):
        history.parameters(1)


def test_versions_rise():
    history = WeightHistory(keep=3)
    history.add(*published(4))
    with pytest.raises(InputError, match=r"versions rise - got 3@.*, expected 4@.* again, or a higher number"):
        history.add(*published(3))
    with pytest.raises(InputError, match="versions rise"):
        history.add(*published(4, value=-1.0))
    assert [version.number for version in history.versions] == [4]
    history.check()


def test_the_newest_may_come_again():
    history = WeightHistory(keep=3)
    history.add(*published(4))
    version, params = published(4)
    history.add(version, params)
    assert history.parameters(4)["norm"] is params["norm"]
    assert len(history) == 1


@pytest.mark.parametrize("keep", [0, -1])
def test_a_history_of_nothing_is_refused(keep):
    with pytest.raises(InputError, match=rf"weight history \(keep\): .* got {keep}, expected at least 1"):
        WeightHistory(keep)


@given(st.integers(1, 4), st.lists(st.tuples(st.integers(0, 8), st.booleans()), max_size=30))
def test_any_order_of_additions_holds_the_newest(keep, additions):
    """Against a plain list; what is refused changes nothing."""
    history, expected = WeightHistory(keep), []
    for number, same in additions:
        version, params = published(number, value=number if same else number + 0.5)
        if not expected or version.number > expected[-1].number:
            expected = [*expected, version][-keep:]
            history.add(version, params)
        elif version == expected[-1]:
            history.add(version, params)
        else:
            with pytest.raises(InputError):
                history.add(version, params)
        assert list(history.versions) == expected
        history.check()
        for old in range(9):
            if old in [held.number for held in expected]:
                assert history.parameters(old) == history.by_number[old]
            else:
                with pytest.raises(InputError):
                    history.parameters(old)
