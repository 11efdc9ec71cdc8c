"""Spans that can be true and those that cannot, and which pass decided which token; against a slow account of keys."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.core import Logprobs, Provenance, Rollout, Span
from lockstep.errors import InputError
from lockstep.train.spans import Pass, check_spans, passes


def rollout_of(make, prompt: int, versions, spans) -> Rollout:
    """A rollout of one token a version, with these (start, end, version)."""
    made = make.rollout(prompt=(5,) * prompt, tokens=(8,) * len(versions))
    origin = made.provenance
    contract = replace(made.sampler_logprobs.contract, weight_versions=tuple(sorted(set(versions))))
    return replace(
        made,
        provenance=Provenance(
            np.array(versions, np.int32), origin.path, origin.cached, tuple(Span(*span) for span in spans)
        ),
        sampler_logprobs=Logprobs(made.sampler_logprobs.values, contract),
    )


def account(prompt: int, count: int, spans) -> dict[int, list[int]] | None:
    """Token -> versions of the keys that its row saw when it was first run; None if the spans cannot be true."""
    keys: list[int] = []
    seen: dict[int, list[int]] = {}
    ran: set[int] = set()
    latest = 0
    for start, end, version in spans:
        if start == 0:
            keys = []
        if start != len(keys) or end <= start or version < latest:
            return None
        latest = version
        for position in range(start, end):
            keys.append(version)
            if position >= prompt - 1 and position not in ran:
                seen[position - prompt + 1] = list(keys)
            ran.add(position)
    return seen if ran == set(range(prompt + count - 1)) else None


def on_passes(prompt: int, plan: tuple[Pass, ...]) -> dict[int, list[int]]:
    """The same account, read off the passes."""
    seen = {}
    for one in plan:
        keys = [span.version for span in one.spans for _ in range(span.start, span.end)]
        assert len(keys) == one.end
        for token in one.tokens:
            assert token not in seen, "decided twice"
            seen[token] = keys[: prompt + token]
    return seen


def test_the_example_of_the_drawing(make):
    spans = [(0, 6, 1), (6, 9, 2), (0, 11, 2)]
    rollout = rollout_of(make, 4, [1] * 3 + [2] * 5, spans)
    assert passes(rollout) == (
        Pass((Span(0, 6, 1), Span(6, 9, 2)), range(6)),
        Pass((Span(0, 11, 2),), range(6, 8)),
    )


def test_no_spans_are_one_pass_at_one_version(make):
    assert passes(make.rollout(version=5)) == (Pass((Span(0, 4, 5),), range(2)),)
    assert passes(make.rollout((5,), (6,), version=2)) == (Pass((Span(0, 1, 2),), range(1)),)


def test_chunks_at_one_version_are_one_span(make):
    rollout = rollout_of(make, 4, [1, 1, 2], [(0, 2, 1), (2, 4, 1), (4, 5, 1), (5, 6, 2)])
    assert passes(rollout) == (Pass((Span(0, 5, 1), Span(5, 6, 2)), range(3)),)


def test_a_start_that_was_given_up_decides_nothing(make):
    """Part of a prompt, and a whole sequence run again but cut off before it decided anything new."""
    rollout = rollout_of(make, 4, [2, 2], [(0, 3, 1), (0, 5, 2), (0, 2, 3)])
    assert passes(rollout) == (Pass((Span(0, 5, 2),), range(2)),)


@st.composite
def histories(draw):
    """Prompt, tokens, spans of a sequence that was run, updated and started anew at random."""
    prompt, count = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    spans, at, length, version = [], 0, prompt, draw(st.integers(0, 2))
    while length < prompt + count:
        what = draw(st.sampled_from(("run", "run", "all", "update", "restart")))
        if what == "update":
            version += draw(st.integers(1, 2))
        elif what == "restart" and draw(st.booleans()):
            at = 0
        else:
            end = length if what == "all" else min(length, at + draw(st.integers(1, 4)))
            spans.append((at, end, version))
            at = end
            length += at == length
    return prompt, count, spans


@given(histories())
def test_passes_see_the_keys_of_the_time(make, history):
    prompt, count, spans = history
    expected = account(prompt, count, spans)
    assert expected is not None
    versions = [expected[token][-1] for token in range(count)]
    rollout = rollout_of(make, prompt, versions, spans)
    check_spans(rollout)
    assert on_passes(prompt, passes(rollout)) == expected


@given(histories(), st.data())
def test_one_wrong_version_of_a_token_is_found(make, history, data):
    prompt, count, spans = history
    expected = account(prompt, count, spans)
    assert expected is not None
    versions = [expected[token][-1] for token in range(count)]
    wrong = data.draw(st.integers(0, count - 1))
    versions[wrong] += data.draw(st.sampled_from((1, 2, -1))) if versions[wrong] else 1
    with pytest.raises(InputError, match=rf"carries the version that decided it - got token {wrong} of"):
        check_spans(rollout_of(make, prompt, versions, spans))


LOOSE = st.tuples(st.integers(-1, 5), st.integers(-1, 6), st.integers(0, 2))


@given(st.integers(1, 3), st.integers(1, 3), st.lists(LOOSE, min_size=1, max_size=4))
def test_any_spans_are_right_or_refused(make, prompt, count, spans):
    """Spans out of nowhere: accepted exactly where the account of keys can be drawn up."""
    expected = account(prompt, count, spans)
    versions = [1] * count if expected is None else [expected[token][-1] for token in range(count)]
    rollout = rollout_of(make, prompt, versions, spans)
    if expected is None:
        with pytest.raises(InputError, match=r"rollout \(r0\): "):
            passes(rollout)
    else:
        assert on_passes(prompt, passes(rollout)) == expected


@given(histories(), st.data())
def test_a_history_with_one_number_changed_is_right_or_refused(make, history, data):
    prompt, count, spans = history
    at, which = data.draw(st.integers(0, len(spans) - 1)), data.draw(st.integers(0, 2))
    changed = list(spans[at])
    changed[which] += data.draw(st.sampled_from((-2, -1, 1, 2)))
    spans[at] = tuple(changed)
    expected = account(prompt, count, spans) if min(changed) >= 0 else None
    versions = [0] * count if expected is None else [expected[token][-1] for token in range(count)]
    rollout = rollout_of(make, prompt, versions, spans)
    if expected is None:
        with pytest.raises(InputError, match=r"rollout \(r0\): "):
            check_spans(rollout)
    else:
        assert on_passes(prompt, passes(rollout)) == expected


@pytest.mark.parametrize(
    ("versions", "spans", "words"),
    [
        ([1, 1], [(0, 5, 1)], "positions of the sequence - got positions 0 to 4 at version 1, expected some of 0 to 3"),
        ([1, 1], [(0, 0, 1)], "runs positions of the sequence - got positions 0 to -1"),
        ([1, 1], [(1, 4, 1)], "starts anew - got positions 1 to 3 at version 1 after nothing, expected a start at 0"),
        ([1, 1], [(0, 3, 1), (2, 4, 1)], "starts anew - got positions 2 to 3 .* expected a start at 0 or 3"),
        ([1, 1], [(0, 2, 1), (3, 4, 1)], "starts anew - got positions 3 to 3 .* expected a start at 0 or 2"),
        ([2, 1], [(0, 3, 2), (3, 4, 1)], "versions never fall - got .* expected a version of at least 2"),
        ([1, 1], [(0, 2, -1), (2, 4, 1)], "versions never fall - got .* expected a version of at least 0"),
        ([1, 2], [(0, 3, 2), (3, 4, 2)], "got token 0 of version 1, first run in positions 0 to 2 at version 2"),
        ([1, 1], [(0, 3, 1)], "run every row that decided a token - got 3 positions, expected 4"),
        ([1, 2], [], r"several weight versions need spans - got versions \(1, 2\) and no span"),
    ],
)  # fmt: skip
def test_refusals_say_which_span_and_what_was_expected(make, versions, spans, words):
    with pytest.raises(InputError, match=rf"^rollout \(r0\): .*{words}"):
        check_spans(rollout_of(make, 3, versions, spans))


def test_versions_that_are_missing_or_not_those_of_the_contract(make):
    good = rollout_of(make, 3, [1, 2], [(0, 3, 1), (3, 4, 2)])
    check_spans(good)
    torn = replace(good, provenance=replace(good.provenance, weight_version=np.array([1], np.int32)))
    with pytest.raises(InputError, match="2 tokens and 1 weight versions"):
        check_spans(torn)
    with pytest.raises(InputError, match="0 prompt ids, 2 tokens"):
        check_spans(replace(good, prompt_ids=good.prompt_ids[:0]))
    contract = replace(good.sampler_logprobs.contract, weight_versions=(1,))
    with pytest.raises(InputError, match=r"got tokens of \(1, 2\), expected those of the contract, \(1,\)"):
        check_spans(replace(good, sampler_logprobs=Logprobs(good.sampler_logprobs.values, contract)))
    with pytest.raises(InputError, match=r"got tokens of \(-1,\)"):
        check_spans(rollout_of(make, 3, [-1, -1], []))
