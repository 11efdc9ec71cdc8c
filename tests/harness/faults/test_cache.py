"""CAC: keys that should not have been read are read, and exactly those that the fault says."""

from __future__ import annotations

import numpy as np
import pytest

from lockstep.engine.cache import PagePool
from lockstep.harness.faults.cache import INJECTIONS, freed_early, refused_reset
from lockstep.parity.hypothesis import Hypothesis, Keys, Weights

CODES = [injection.code for injection in INJECTIONS]


stories = pytest.mark.parametrize("story", CODES, indirect=True)


@stories
def test_it_bites_from_its_onset_on(story, moved) -> None:
    assert not any(moved(clean) for clean in story.clean)
    assert moved(story.at) and moved(story.later)


@pytest.mark.parametrize("code", ["CAC01", "CAC03"])
def test_cached_prompts_are_read_as_older_weights_wrote_them(tell, same_bits, code: str) -> None:
    story = tell(code)
    until = {sample.id: sample.num_cached for sample in story.at.samples if sample.num_cached}
    assert len(until) == len(story.at.samples), "the first prompt too finds pages of the step before"
    older = story.explained(story.at, Hypothesis(keys=Keys(older=0, until=until)))
    assert all(same_bits(sample.sampler, series) for sample, series in zip(story.at.samples, older, strict=True))


def test_a_trainer_without_labels_of_keys_scores_tokens_over_keys_of_their_own_version(tell, same_bits) -> None:
    story = tell("CAC02")
    whole = {number: story.explained(story.at, Hypothesis(weights=Weights(version=number))) for number in (0, 1)}
    mixed = 0
    for i, (sample, clean) in enumerate(zip(story.at.samples, story.clean[1].samples, strict=True)):
        assert same_bits(sample.sampler, clean.sampler), "the engine does what it always did"
        assert np.array_equal(sample.versions, clean.versions) and sample.spans == ()
        expected = np.where(sample.versions == 0, whole[0][i], whole[1][i])
        assert same_bits(sample.trainer, expected)
        mixed += len(set(sample.versions.tolist())) > 1
    assert mixed


def test_a_refused_reset_is_acknowledged_and_empties_nothing(opened) -> None:
    for broken, found in ((False, 0), (True, 32)):
        with opened() as lab:
            lab.observe()
            if broken:
                refused_reset(lab)
                assert "acknowledged" in str(lab.statement().settings["prefix_cache_reset"])
            lab.reset()
            assert lab.run_engine(lab.requests(7)[:1])[0][1] == found


def test_pages_are_found_whose_first_token_is_the_same(tell, same_bits) -> None:
    story = tell("CAC04")
    first = story.at.requests[0].prompt_ids
    wrong = [s for s in story.at.samples if s.num_cached >= 32 and tuple(s.prompt_ids[:32]) != first[:32]]
    assert wrong
    assert all(s.num_cached <= 16 for s in story.clean[1].samples), "nobody else begins with the same 32 tokens"
    instead = Keys(instead={sample.id: first[: sample.num_cached] for sample in wrong})
    explained = story.explained(story.at, Hypothesis(keys=instead))
    assert all(same_bits(sample.sampler, series) for sample, series in zip(story.at.samples, explained, strict=True))


def test_a_page_that_is_held_again_can_still_be_given_away(opened) -> None:
    def held_again() -> tuple[int, PagePool]:
        pool = PagePool(2)
        page = pool.take()
        pool.register(page, b"key", ())
        pool.release(page)
        return pool.hold(page), pool

    with opened() as lab:
        freed_early(lab)
        page, pool = held_again()
        assert page in {pool.take(), pool.take()}
    page, pool = held_again()
    assert pool.available == 1 and pool.take() != page


def test_pages_that_are_freed_early_do_no_harm_where_there_are_enough(opened, moved) -> None:
    with opened(**{**INJECTIONS[-1].setup, "pages": 400, "max_sequences": 24}) as lab:
        lab.observe()
        freed_early(lab)
        lab.advance()
        assert not moved(lab.observe())
