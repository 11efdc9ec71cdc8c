"""Computing ahead moves no uniform: each is that of its key and position, whoever else draws."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lockstep import numerics
from lockstep.core import Path, Request, SamplingParams
from lockstep.engine import uniforms as module
from lockstep.engine.request import Completion, Job
from lockstep.engine.uniforms import AHEAD, uniforms_of


def completions(lengths: list[int], greedy: list[bool]) -> list[Completion]:
    made = []
    for i, (length, plain) in enumerate(zip(lengths, greedy, strict=True)):
        params = SamplingParams(temperature=0.0 if plain else 0.8, n=2, seed=i % 2)
        made += Job(Request(f"r{i}", tuple(range(1, 1 + length)), params), 3 * AHEAD).completions
    return made


def expected(completion: Completion) -> float:
    request = completion.job.request
    if request.params.greedy:
        return 0.0
    key = numerics.request_key(request.params.seed, request.id, completion.index)
    return numerics.uniform(key, completion.length)


@given(
    st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=4),
    st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=8), max_size=AHEAD + 10),
)
def test_whoever_draws_gets_the_uniform_of_the_token(rows, steps) -> None:
    """Steps draw for any of the completions; some are asked twice, as when a step fails and is run again."""
    everyone = completions(*map(list, zip(*rows, strict=True)))
    for step in steps:
        chosen = list(dict.fromkeys(everyone[i % len(everyone)] for i in step))
        assert uniforms_of(chosen) == [expected(c) for c in chosen]
        for completion in chosen[: len(step) // 2 + 1]:
            if completion.length < len(completion.tokens):
                completion.append(7, -1.0, 0, Path.DECODE, None)
        everyone = [c for c in everyone if c.length < len(c.tokens)]
        if not everyone:
            return


def test_up_to_the_very_last_token_and_in_few_calls(monkeypatch) -> None:
    calls, real = [], numerics.uniforms
    monkeypatch.setattr(module.numerics, "uniforms", lambda *both: calls.append(len(both[1])) or real(*both))
    everyone = completions([2, 3], [False, False])
    for _ in range(3 * AHEAD):
        assert uniforms_of(everyone) == [expected(c) for c in everyone]
        for completion in everyone:
            completion.append(7, -1.0, 0, Path.DECODE, None)
    assert calls == [4 * AHEAD] * 3
