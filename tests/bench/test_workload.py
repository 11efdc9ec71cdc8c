from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.workload import TEXT, Workload


@given(st.integers(0, 2**32), st.integers(0, 3), st.integers(1, 40), st.integers(0, 30))
def test_prompts_are_a_function_of_seed_and_round(tiny, seed, number, shortest, more):
    work = Workload(8, shortest, shortest + more, seed)
    prompts = work.prompts(tiny.tokenizer, number)
    assert prompts == Workload(8, shortest, shortest + more, seed).prompts(tiny.tokenizer, number)
    assert len(prompts) == 8
    assert all(shortest <= len(prompt) <= shortest + more for prompt in prompts)
    assert prompts != Workload(8, shortest, shortest + more, seed + 1).prompts(tiny.tokenizer, number)


@given(st.integers(0, 2**32))
def test_no_two_prompts_of_a_run_begin_at_one_place(seed):
    class Places:
        """A tokenizer whose ids are the places themselves."""

        def encode(self, text):
            return list(range(len(text.split())))

    work = Workload(64, 20, 60, seed)
    first = [prompt[0] for number in range(10) for prompt in work.prompts(Places(), number)]  # type: ignore[arg-type]
    assert len(set(first)) == 640


def test_prompts_are_pieces_of_the_text(tiny):
    text = tiny.tokenizer.decode(tiny.tokenizer.encode(TEXT.read_text()))
    for prompt in Workload(8, 20, 60).prompts(tiny.tokenizer, 2):
        assert tiny.tokenizer.decode(prompt) in text


def test_lengths_are_mixed(tiny):
    lengths = {len(prompt) for prompt in Workload(64, 20, 60).prompts(tiny.tokenizer, 0)}
    assert len(lengths) > 20 and min(lengths) < 25 and max(lengths) > 55


def test_more_rounds_than_there_is_text_are_refused(tiny):
    with pytest.raises(AssertionError, match="room"):
        Workload(64, 20, 60).prompts(tiny.tokenizer, 1000)


@pytest.mark.model
def test_the_text_has_room_for_twenty_rounds():
    from lockstep import models

    tokenizer = models.load("smollm2").tokenizer
    assert len(Workload(64, 20, 60).prompts(tokenizer, 20)) == 64
