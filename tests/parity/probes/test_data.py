"""DAT: what was recorded contradicts itself, or agrees when it is moved, swapped, read after another prompt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.core import SamplingParams
from lockstep.harness.faults import INJECTIONS
from lockstep.harness.laboratory import Laboratory
from lockstep.harness.networks import Networks
from lockstep.harness.scoreboard import auditor_of
from lockstep.harness.setup import Setup
from lockstep.parity.observation import Observation, Sample
from lockstep.parity.probe import Look
from lockstep.parity.probes import data

CODES = [code for code in INJECTIONS if code.startswith("DAT")]
CHEAP = (data.counts, data.templates, data.copies)
PROBE = {
    "DAT01": data.shifted, "DAT02": data.counts, "DAT03": data.counts, "DAT04": data.swapped, "DAT05": data.counts,
    "DAT06": data.templates, "DAT07": data.copies, "DAT08": data.neighbours,
}  # fmt: skip
PARAMS = SamplingParams(temperature=1.0, max_tokens=8)
LONG = SamplingParams(temperature=1.0, max_tokens=32)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    return Networks(Path(tmp_path_factory.mktemp("networks")))


def seen(networks: Networks, code: str | None, seed: int = 1, steps: int = 2) -> tuple[Look, Laboratory]:
    injection = INJECTIONS[code] if code else None
    setup = Setup.random(seed, **{"exact": True, "family": "llama", **(injection.setup if injection else {})})
    laboratory = Laboratory(networks, setup)
    auditor = auditor_of(laboratory)
    before = []
    for _ in range(steps - 1):
        before.append(laboratory.observe())
        if injection and len(before) == steps - 1:
            injection.install(laboratory)
        laboratory.advance()
    return Look(laboratory.observe(), auditor.reference, auditor.subject, before), laboratory


def sample(name: str, count: int = 6, **fields) -> Sample:
    rng = np.random.Generator(np.random.Philox(key=sum(map(ord, name))))
    values = -rng.random(count).astype(np.float32) * 4 - 0.1
    ids = rng.integers(60, size=count).astype(np.int32)
    whole = {"sampler": values, "trainer": values, "params": PARAMS, "group": name, "finish_reason": "stop"}
    return Sample(name, np.arange(5, dtype=np.int32), ids, **{**whole, **fields})


def look(*samples: Sample, grain: float = 0.0) -> Look:
    return Look(Observation(1, samples), grain=grain)


def codes(found) -> list[str]:
    return [evidence.code for evidence in found]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("seed", [1, 2])
def test_each_fault_is_what_its_probe_says_first(networks, code, seed):
    found, laboratory = seen(networks, code, seed)
    with laboratory:
        probe = data.prompts if code == "DAT06" and seed % 2 == 0 else PROBE[code]
        evidence = max(probe(found), key=lambda e: e.explained)
        assert evidence.code == code and evidence.explained > 0.97


def test_a_clean_run_shows_nothing(networks):
    for seed in (1, 2):
        found, laboratory = seen(networks, None, seed)
        with laboratory:
            for probe in (*CHEAP, data.shifted, data.swapped, data.prompts, data.neighbours):
                assert not probe(found), probe.__name__


class TestCounts:
    def test_equal_counts_and_ids_are_right(self):
        one = sample("a")
        assert not data.counts(look(one, replace(one, drawn_ids=one.token_ids)))

    def test_ids_that_were_not_drawn(self):
        one = sample("a")
        (found,) = data.counts(look(replace(one, drawn_ids=one.token_ids[::-1].copy())))
        assert found.code == "DAT02" and found.certain

    @pytest.mark.parametrize("reason", ["length", "stop"])
    def test_one_more_token_than_logprobs_was_appended(self, reason):
        one = sample("a", finish_reason=reason)
        longer = replace(one, token_ids=np.append(one.token_ids, np.int32(0)))
        assert codes(data.counts(look(longer))) == ["DAT03"]

    def test_more_tokens_than_were_asked_for_were_appended_even_with_a_logprob(self):
        one = sample("a", 9, finish_reason="length")
        assert codes(data.counts(look(one))) == ["DAT03"]

    def test_fewer_tokens_than_logprobs_were_encoded_again(self):
        one = sample("a")
        assert codes(data.counts(look(replace(one, token_ids=one.token_ids[:-2])))) == ["DAT02"]

    def test_the_token_after_an_update_is_missing(self):
        one = sample("a", versions=np.array([3, 3, 4, 4, 4, 4]))
        lost = replace(one, token_ids=np.delete(one.token_ids, 2), drawn_ids=one.token_ids)
        assert codes(data.counts(look(lost))) == ["DAT05"]
        other = replace(one, token_ids=np.delete(one.token_ids, 4), drawn_ids=one.token_ids)
        assert codes(data.counts(look(other))) == ["DAT02"]

    def test_the_first_sample_is_told(self):
        one = sample("first")
        (found,) = data.counts(look(replace(one, token_ids=one.token_ids[:-2]), sample("b")))
        assert "first: 6 drawn, 4 tokens in the batch" in found.why and found.figures["samples"] == 1

    @given(st.integers(0, 7), st.integers(0, 7), st.integers(0, 7))
    def test_any_lengths_are_looked_at_without_an_error(self, tokens, sampler, drawn):
        one = sample("a", 8, finish_reason="length", versions=np.array([1] * 3 + [2] * 5))
        odd = replace(one, token_ids=one.token_ids[:tokens], sampler=one.sampler[:sampler])
        for said in (None, one.token_ids[:drawn]):
            found = data.counts(look(replace(odd, drawn_ids=said)))
            assert len(found) <= 1 and all(e.certain for e in found)
            if said is None:
                assert bool(found) == (tokens != sampler)


class TestCopies:
    def test_requests_that_draw_the_same_are_copies(self):
        one = sample("a", 24, params=LONG)
        (found,) = data.copies(look(one, replace(one, id="b", group="b")))
        assert found.code == "DAT07" and found.certain and found.figures["copies"] == 1

    def test_within_a_request_only_its_own_draws_matter(self):
        one = sample("a", 24, params=LONG)
        assert not data.copies(look(one, replace(one, id="b")))

    def test_other_prompts_may_have_equal_answers(self):
        one = sample("a", 24, params=LONG)
        other = replace(one, id="b", group="b", prompt_ids=one.prompt_ids + 1)
        assert not data.copies(look(one, other))

    def test_what_is_likely_is_no_copy(self):
        one = sample("a", sampler=np.full(6, -0.01, np.float32))
        assert not data.copies(look(one, replace(one, id="b", group="b")))

    @pytest.mark.parametrize(
        "fields",
        [
            {"params": None},
            {"params": replace(PARAMS, temperature=0.0)},
            {"sampler": None},
            {"sampler": np.full(24, -9999.0, np.float32)},
            {"sampler": np.full(24, -np.inf, np.float32)},
            {"sampler": np.full(24, np.nan, np.float32)},
        ],
    )
    def test_without_the_odds_nothing_is_said(self, fields):
        one = sample("a", 24, **{"params": LONG, **fields})
        assert not data.copies(look(one, replace(one, id="b", group="b")))


class TestTemplates:
    def test_the_prompt_as_the_engine_had_it(self):
        one = sample("a")
        (found,) = data.templates(look(replace(one, drawn_prompt_ids=np.append(one.prompt_ids, np.int32(1)))))
        assert found.code == "DAT06" and "6 tokens there, 5 here" in found.why
        assert not data.templates(look(replace(one, drawn_prompt_ids=one.prompt_ids), one))


class TestShifted:
    @pytest.mark.parametrize("lag", [1, -1])
    def test_a_series_that_was_rolled(self, lag):
        one = sample("a")
        (found,) = data.shifted(look(replace(one, sampler=np.roll(one.sampler, lag))))
        assert found.figures["lag"] == lag and found.explained == pytest.approx(1.0)

    def test_two_places_are_not_one(self):
        one = sample("a", 9)
        assert not data.shifted(look(replace(one, sampler=np.roll(one.sampler, 2))))

    def test_short_ones_say_nothing(self):
        one = sample("a", 2)
        assert not data.shifted(look(replace(one, sampler=one.sampler[::-1].copy())))

    def test_through_noise(self):
        one = sample("a", 8)
        noisy = np.roll(one.sampler, 1) + np.float32(0.01)
        (found,) = data.shifted(look(replace(one, sampler=noisy), grain=0.02))
        assert found.explained == pytest.approx(1.0)


class TestSwapped:
    def test_two_series_that_changed_places(self):
        one, two, three = sample("a"), sample("b"), sample("c")
        (found,) = data.swapped(look(replace(one, sampler=two.sampler), replace(two, sampler=one.sampler), three))
        assert found.code == "DAT04" and found.figures["samples"] == 2 and found.explained == pytest.approx(1.0)

    def test_of_unequal_length_too(self):
        one, two = sample("a", 5), sample("b", 7)
        (found,) = data.swapped(look(replace(one, sampler=two.sampler), replace(two, sampler=one.sampler)))
        assert found.code == "DAT04"

    def test_one_that_is_wrong_by_itself_is_not_swapped(self):
        one, two = sample("a"), sample("b")
        assert not data.swapped(look(replace(one, sampler=one.sampler - 1), two))


def test_packs_need_a_deviating_trainer_and_a_reference(networks):
    found, laboratory = seen(networks, "DAT08", 2)
    with laboratory:
        (evidence,) = data.neighbours(found)
        assert evidence.who == "trainer" and evidence.hypothesis is not None
        first = found.samples[0]
        assert np.array_equal(first.trainer, found.score()[0]), "the first of a pack sees nobody"


@pytest.mark.parametrize("code", CODES)
def test_the_step_before_the_fault_is_clean(networks, code):
    found, laboratory = seen(networks, code)
    with laboratory:
        (before,) = found.before
        for one in before.comparable:
            assert np.array_equal(one.sampler, one.trainer)
            assert one.drawn_ids is None and one.drawn_prompt_ids is None
