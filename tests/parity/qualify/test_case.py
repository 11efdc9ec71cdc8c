"""A case holds arrays of one type and of fitting lengths, or is refused."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from lockstep.errors import InputError
from lockstep.parity.qualify.case import Completion


def arrays() -> dict[str, np.ndarray]:
    ids, values = np.arange(3, dtype=np.int32), np.array([-1.0, -2.0, -3.0], np.float32)
    return {"prompt_ids": ids[:2], "token_ids": ids, "old_logprobs": values, "new_logprobs": values + 0.5}


def completion(**changes) -> Completion:
    return Completion("c1", **(arrays() | changes))


class TestCompletion:
    def test_has_the_mean_distance_of_its_logprobs(self):
        assert completion().mean == 0.5

    @pytest.mark.parametrize("odd", [np.nan, np.inf])
    def test_holds_what_a_side_gave_even_if_it_is_no_number(self, odd):
        same = np.array([odd, odd, odd], np.float32)
        assert math.isnan(completion(old_logprobs=same, new_logprobs=same).mean)

    def test_may_be_empty(self):
        ids, values = np.zeros(0, np.int32), np.zeros(0, np.float32)
        empty = completion(prompt_ids=ids, token_ids=ids, old_logprobs=values, new_logprobs=values)
        assert math.isnan(empty.mean)

    @pytest.mark.parametrize(
        ("name", "array"),
        [
            ("prompt_ids", np.zeros(2, np.int64)),
            ("prompt_ids", np.zeros((2, 1), np.int32)),
            ("token_ids", np.zeros(3, np.float32)),
            ("old_logprobs", np.zeros(3, np.float64)),
            ("new_logprobs", np.zeros(2, np.float32)),
            ("new_logprobs", np.zeros(3, ">f4")),
            ("new_logprobs", [0.0, 0.0, 0.0]),
            ("new_logprobs", None),
        ],
    )
    def test_of_another_type_or_length_is_refused(self, name, array):
        with pytest.raises(InputError, match=rf"completion \(c1\): {name} must be") as caught:
            completion(**{name: array})
        assert re.search(r" - got .+, expected (int|float)32 \[(P|3)\]\. Cast it", str(caught.value))

    @pytest.mark.parametrize("name", ["id", "prompt"])
    def test_its_texts_are_unicode(self, name):
        with pytest.raises(InputError, match=rf"setting .+completion's {name}.+no Unicode"):
            Completion(**({"id": "a", "prompt": "b", name: "\ud800"}), **arrays())
        with pytest.raises(AssertionError, match=f"{name} is text"):
            Completion(**({"id": "a", "prompt": "b", name: 3}), **arrays())
