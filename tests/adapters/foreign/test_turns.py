"""Sequences cut into samples: every drawn token is in one sample, with its own numbers and all that stood before it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.adapters.foreign.gaps import Gaps
from lockstep.adapters.foreign.row import Row
from lockstep.adapters.foreign.turns import NO_IDS, Names, cut, logged
from lockstep.errors import InputError

NAMES = Names("p", "t", "s", "b", "r", "m")


def log(**tree: Any) -> tuple[list[Any], Gaps]:
    gaps = Gaps()
    return logged(Row("f (line 1)", tree), NAMES, {"text": "x", "group": "g"}, "name", gaps), gaps


def test_one_turn_keeps_its_name():
    ids, drawn = np.array([5, 6, 7, 8], np.int32), np.array([False, True, True, False])
    (sample,) = cut("s", ids, drawn, {"sampler": np.arange(4, dtype=np.float32), "trainer": None}, {"group": "g"})
    assert (sample.id, sample.group, sample.trainer) == ("s", "g", None)
    assert sample.prompt_ids.tolist() == [5]
    assert sample.token_ids.tolist() == [6, 7]
    assert sample.sampler.tolist() == [1, 2]  # type: ignore[union-attr]


def test_nothing_drawn_is_no_sample():
    assert cut("s", np.arange(3, dtype=np.int32), np.zeros(3, bool), {}) == []
    assert cut("s", NO_IDS, np.zeros(0, bool), {}) == []


@given(drawn=st.lists(st.booleans(), max_size=30))
def test_samples_are_the_drawn_tokens(drawn: list[bool]):
    mask, ids = np.array(drawn, bool), np.arange(len(drawn), dtype=np.int32)
    samples = cut("s", ids, mask, {"sampler": ids.astype(np.float32)})
    taken = np.concatenate([s.token_ids for s in samples]) if samples else NO_IDS
    assert taken.tolist() == ids[mask].tolist()
    for sample in samples:
        start = int(sample.token_ids[0])
        assert sample.prompt_ids.tolist() == list(range(start))
        assert start == 0 or not drawn[start - 1]
        assert sample.sampler.tolist() == sample.token_ids.tolist()  # type: ignore[union-attr]
    assert len({sample.id for sample in samples}) == len(samples)


def test_a_log_of_texts_is_texts():
    (sample,), gaps = log()
    assert (sample.id, sample.text, sample.group) == ("name", "x", "g")
    assert len(sample.prompt_ids) == len(sample.token_ids) == 0
    assert (sample.sampler, sample.trainer, sample.reference, sample.mask) == (None,) * 4
    assert gaps.texts == ()


def test_logprobs_without_tokens_are_said_to_be_left_out():
    (sample,), gaps = log(s=[-0.5], b=[-0.25])
    assert (sample.sampler, sample.trainer) == (None, None)
    assert gaps.texts == ("f (line 1): logprobs without t belong to no tokens, they are left out",)


def test_tokens_that_a_user_has_added():
    (sample,), gaps = log(p=[1, 2], t=[3, 4], s=[-0.5, -1.0], b=[-0.5, -1.5], r=[-2.0, -3.0])
    assert sample.prompt_ids.tolist() == [1, 2]
    assert sample.token_ids.tolist() == [3, 4]
    assert sample.sampler.tolist() == [-0.5, -1.0]
    assert sample.trainer.tolist() == [-0.5, -1.5]
    assert sample.reference.tolist() == [-2.0, -3.0]
    assert gaps.texts == ()


def test_a_series_of_another_length_is_kept_as_it_is():
    """Whether a series has the length of its tokens is for the probes to see, where nothing else is cut by it."""
    (sample,), _ = log(t=[3, 4], s=[-0.5])
    assert len(sample.prompt_ids) == 0
    assert sample.sampler.tolist() == [-0.5]
    assert not sample.comparable


def test_a_mask_cuts_turns():
    samples, _ = log(p=[1], t=[3, 4, 9, 5, 0], s=[-1.0, -2.0, 0.0, -3.0, 0.0], m=[1, 1, 0, 1, 0])
    assert [s.prompt_ids.tolist() for s in samples] == [[1], [1, 3, 4, 9]]
    assert [s.token_ids.tolist() for s in samples] == [[3, 4], [5]]
    assert [s.sampler.tolist() for s in samples] == [[-1.0, -2.0], [-3.0]]
    assert [s.id for s in samples] == ["name/turn 0", "name/turn 1"]


def test_a_mask_has_the_length_of_what_it_cuts():
    with pytest.raises(InputError, match=r"lengths t 2, m 2, s 1, expected columns of one length"):
        log(t=[3, 4], s=[-1.0], m=[1, 0])
