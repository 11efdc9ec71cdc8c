from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.adapters.engines.workload import BEGINNING, Workload
from lockstep.core import SamplingParams
from lockstep.errors import InputError


def common(ids) -> int:
    """How many ids all of them begin with."""
    return next((i for i, here in enumerate(zip(*ids, strict=False)) if len({*here}) > 1), min(map(len, ids)))


def test_prompts_begin_alike_within_and_across_steps(tiny):
    workload = Workload(prompts=4)
    prompts = [r.prompt_ids for step in (1, 2) for r in workload.requests(tiny.tokenizer, step)]
    assert common(prompts) >= BEGINNING > 128, "more than a page of vLLM's on a CPU"
    assert len({*prompts}) > 4, "and go on differently"


def test_they_fit_a_small_model(tiny):
    for request in Workload(prompts=8).requests(tiny.tokenizer, 3):
        assert len(request.prompt_ids) + request.params.max_tokens <= tiny.arch.max_context


@given(st.integers(-4, 4), st.integers(0, 5))
def test_a_step_asks_the_same_every_time(tiny, step, seed):
    workload = Workload(seed=seed)
    assert workload.requests(tiny.tokenizer, step) == workload.requests(tiny.tokenizer, step)


def test_ids_and_seeds_are_each_requests_own(tiny):
    asked = [r for step in range(-2, 3) for r in Workload(prompts=3).requests(tiny.tokenizer, step)]
    assert len({r.id for r in asked}) == len(asked) == len({r.params.seed for r in asked})
    other = Workload(prompts=3, seed=1).requests(tiny.tokenizer, 0)
    assert {r.params.seed for r in other}.isdisjoint({r.params.seed for r in asked})


def test_it_is_told_whole():
    told = Workload(SamplingParams(temperature=0.7, top_p=0.8, n=2), 3, 5).plain()
    assert (told["temperature"], told["top_p"], told["n"], told["prompts"], told["steps"]) == (0.7, 0.8, 2, 3, 5)


@pytest.mark.parametrize("name", ["prompts", "steps", "floor"])
def test_there_must_be_some_of_each(name):
    with pytest.raises(InputError, match=f"workload .{name}."):
        Workload(**{name: 0})
