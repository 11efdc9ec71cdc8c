"""CAC: keys that should not have been read; and silence where all keys are the sample's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lockstep.core import Path
from lockstep.parity.observation import Statement
from lockstep.parity.probe import Look
from lockstep.parity.probes import cache
from lockstep.parity.side import CannotAsk

PASSIVE = (cache.prefixes, cache.strangers)


class Kept:
    """A subject that draws what it drew before, one request at a time, and counts how often it is asked."""

    can = frozenset({"sample", "seeded", "reset"})

    def __init__(self, samples: dict[str, list[Any]]) -> None:
        self.samples, self.asked, self.resets = samples, [], 0

    def reset(self) -> None:
        self.resets += 1

    def sample(self, requests: Any) -> list[Any]:
        self.asked.append([request.id for request in requests])
        return [sample for request in requests for sample in self.samples[request.id]]


class TestPrefixes:
    def test_keys_of_an_older_version_under_a_cached_prefix(self, recorded: Any):
        look = recorded("CAC01")
        (found,) = cache.prefixes(look)
        assert (found.code, found.figures["version"]) == ("CAC01", 0)
        assert found.figures["cached"] == sum(bool(s.num_cached) for s in look.samples) > 0
        assert found.explained > 0.99

    def test_a_reset_that_was_acknowledged_makes_it_a_refused_one(self, recorded: Any):
        (found,) = cache.prefixes(recorded("CAC03"))
        assert found.code == "CAC03"
        assert found.why.endswith("although the engine says of a reset: at every update, acknowledged")

    @pytest.mark.parametrize(("reset", "code"), [(None, "CAC01"), (False, "CAC01"), (True, "CAC03"), ("ok", "CAC03")])
    def test_only_an_engine_that_claims_a_reset_has_refused_it(self, recorded: Any, like: Any, reset, code):
        look = recorded("CAC01")
        told = replace(look.observation.engine, settings={"prefix_cache_reset": reset})
        assert [e.code for e in cache.prefixes(like(look, engine=told))] == [code]

    @pytest.mark.parametrize("count", [0, None])
    def test_who_found_nothing_in_the_cache_read_nothing_from_it(self, recorded: Any, like: Any, count):
        look = recorded("CAC01")
        samples = [replace(s, num_cached=count) for s in look.samples]
        assert cache.prefixes(like(look, samples=samples)) == ()

    def test_older_weights_are_not_older_keys(self, recorded: Any):
        assert cache.prefixes(recorded("WGT04")) == []

    def test_the_newest_version_must_be_known(self, recorded: Any, like: Any):
        with pytest.raises(CannotAsk, match="newest version is not known"):
            cache.prefixes(like(recorded("CAC01"), expected=Statement("publisher")))

    def test_the_newest_versions_and_the_very_first_are_tried(self, clean: Look, like: Any):
        class Many:
            versions = tuple(range(12))

        said = replace(clean.observation.expected, number=9)
        assert cache._older(like(clean, reference=Many(), expected=said)) == [8, 7, 6, 0]


class TestMixed:
    def test_who_was_in_flight_goes_on_over_old_keys(self, recorded: Any):
        (found,) = cache.mixed(recorded("CAC02"))
        assert found.code == "CAC02"
        assert found.explained > 0.99

    def test_spans_say_whose_keys_they_are(self, clean_in_flight: Look):
        assert all(sample.spans for sample in clean_in_flight.samples)
        assert cache.mixed(clean_in_flight) == ()

    @pytest.mark.parametrize("versions", [None, np.array([0, 1], np.int32)])
    def test_without_a_version_for_each_token_nobody_knows_where(self, recorded: Any, like: Any, versions):
        look = recorded("CAC02")
        samples = [replace(s, versions=versions) for s in look.samples]
        assert cache.mixed(like(look, samples=samples)) == ()

    def test_it_needs_a_reference(self, recorded: Any, like: Any):
        with pytest.raises(CannotAsk, match="reference"):
            cache.mixed(like(recorded("CAC02"), reference=None))


class TestStrangers:
    def test_the_keys_of_another_prompt(self, recorded: Any):
        (found,) = cache.strangers(recorded("CAC04"))
        assert found.code == "CAC04"
        assert found.explained > 0.9
        assert found.figures["samples"] > 0

    def test_prompts_of_earlier_steps_count_as_others(self, recorded: Any, like: Any):
        """Pages outlive the step that wrote them."""
        look = recorded("CAC04")
        donors = [replace(s, id=f"{s.id}/before") for seen in (look.observation, *look.before) for s in seen.samples]
        wrong = [s for s, far in zip(look.samples, look.distance("sampler"), strict=True) if far > 0]
        earlier = replace(look.before[0], samples=donors)
        assert [e.code for e in cache.strangers(like(look, samples=wrong, before=[earlier]))] == ["CAC04"]

    def test_older_keys_of_the_same_prompt_are_not_anothers(self, recorded: Any):
        assert list(cache.strangers(recorded("CAC01"))) == []

    def test_a_prompt_that_is_too_short_or_begins_alike_is_no_candidate(self, clean: Look):
        sample = replace(clean.samples[0], num_cached=3, prompt_ids=np.array([1, 2, 3, 4], np.int32))
        assert cache._could_be((1, 2, 4), sample)
        assert not cache._could_be((1, 2, 3, 9), sample)
        assert not cache._could_be((9, 9), sample)


class TestGarbage:
    def test_pages_that_were_written_over_while_they_were_read(self, broken: Any):
        (found,) = cache.garbage(broken("CAC05"))
        assert found.code == "CAC05"
        assert "drawn again one by one" in found.why

    def test_what_is_still_wrong_alone_was_not_written_over(self, recorded: Any, like: Any):
        look = recorded("CAC05")
        same: dict[str, list[Any]] = {}
        for sample in look.samples:
            same.setdefault(sample.id.rpartition("/")[0], []).append(sample)
        subject = Kept(same)
        assert cache.garbage(like(look, subject=subject)) == ()
        assert subject.resets == 1
        assert all(len(names) == 1 for names in subject.asked)

    def test_if_all_samples_are_wrong_it_is_no_accident(self, recorded: Any, like: Any):
        look = recorded("CAC05")
        wrong = [s for s, far in zip(look.samples, look.distance("sampler"), strict=True) if far > 0]
        same: dict[str, list[Any]] = {}
        for sample, honest in zip(look.samples, look.score(), strict=True):
            same.setdefault(sample.id.rpartition("/")[0], []).append(replace(sample, sampler=honest))
        assert [e.code for e in cache.garbage(like(look, subject=Kept(same)))] == ["CAC05"]
        assert cache.garbage(like(look, samples=wrong, subject=Kept(same))) == ()

    def test_where_something_happened_to_the_sample_that_may_be_the_cause(self, recorded: Any, like: Any):
        look = recorded("CAC05")
        paths = [np.full(len(s.token_ids), Path.RECOMPUTE, np.uint8) for s in look.samples]
        samples = [replace(s, path=path) for s, path in zip(look.samples, paths, strict=True)]
        assert cache.garbage(like(look, samples=samples, subject=Kept({}))) == ()

    def test_requests_that_are_not_known_cannot_be_drawn_again(self, recorded: Any, like: Any):
        subject = Kept({})
        assert cache.garbage(like(recorded("CAC05"), requests=(), subject=subject)) == ()
        assert subject.asked == []

    @pytest.mark.parametrize("lost", ["sample", "seeded"])
    def test_it_needs_an_engine_that_draws_the_same_again(self, clean: Look, like: Any, without: Any, lost):
        for look in (like(clean, subject=without(clean, lost)), like(clean, subject=None)):
            with pytest.raises(CannotAsk, match="whose draws are keyed"):
                cache.garbage(look)

    def test_the_first_wrong_token_is_beyond_the_noise(self, clean: Look):
        sample = replace(clean.samples[0], sampler=np.array([-1, -1.01, -1.5, -9], np.float32))
        honest = np.full(4, -1, np.float32)
        assert cache._start(sample, honest, 0.0) == 1
        assert cache._start(sample, honest, 0.01) == 2
        assert cache._start(sample, honest, 9.0) == 0

    @pytest.mark.parametrize(("at", "changed"), [(0, False), (1, False), (2, True), (3, False)])
    def test_an_update_interrupts_where_the_version_changes(self, clean: Look, at: int, changed: bool):
        sample = replace(clean.samples[0], versions=np.array([0, 0, 1, 1], np.int32), path=None)
        assert cache._interrupted(sample, at) is changed

    @pytest.mark.parametrize(
        ("a", "b", "count"), [("abc", "abc", 3), ("abc", "abd", 2), ("abc", "ab", 2), ("", "a", 0)]
    )
    def test_texts_are_common_up_to_the_first_other_token(self, a: str, b: str, count: int):
        ids = [np.array([ord(c) for c in text], np.int32) for text in (a, b)]
        assert cache._common(*ids) == cache._common(*ids[::-1]) == count


class TestSilence:
    def test_on_clean_runs_nothing_is_found(self, clean: Look, clean_in_flight: Look):
        for look in (clean, clean_in_flight):
            assert any(sample.num_cached for sample in look.samples)
            for probe in (*PASSIVE, cache.mixed, cache.garbage):
                assert list(probe(look)) == [], probe.__name__

    @pytest.mark.parametrize("probe", [*PASSIVE, cache.garbage])
    def test_without_a_reference_nobody_can_say(self, clean: Look, like: Callable[..., Look], probe):
        with pytest.raises(CannotAsk, match="reference: none was given"):
            probe(like(clean, reference=None))
