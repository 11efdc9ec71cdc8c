"""WGT: older weights, parts of older ones, labels that lie; and silence where weights are right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lockstep.parity.observation import Observation, Sample, Statement
from lockstep.parity.probe import ENOUGH, Look
from lockstep.parity.probes import weights
from lockstep.parity.side import CannotAsk

DEEP = (weights.versions, weights.torn, weights.identity, weights.scale)
OURS = {"embedding": "e1", "layers.0.down": "d1", "head": "h1"}
STALE = {**OURS, "head": "h0"}


def said(engine: dict[str, Any], expected: dict[str, Any] | None = None, held: dict[str, str] | None = None) -> Look:
    """A look at statements only."""
    published = {"number": 7, "digest": "right", **(expected or {})}
    return Look(
        Observation(
            1,
            (),
            engine=Statement("engine", **engine),
            trainer=Statement("trainer", tensors=OURS if held is None else held),
            expected=Statement("publisher", **published),
        )
    )


class TestLabel:
    def test_one_number_with_two_digests_is_a_contradiction(self):
        (found,) = weights.label(said({"number": 7, "digest": "wrong"}))
        assert (found.code, found.certain) == ("WGT05", True)
        assert "version 7 with digest wrong" in found.why
        assert found.figures == {"number": 7, "digest": "wrong"}

    @pytest.mark.parametrize(
        "engine",
        [
            {"number": 7, "digest": "right"},
            {"number": 6, "digest": "wrong"},
            {"number": None, "digest": "wrong"},
            {"number": 7, "digest": None},
            {"number": 7, "digest": "wrong", "tensors": OURS},
        ],
    )
    def test_nothing_else_is(self, engine):
        assert weights.label(said(engine)) == ()

    @pytest.mark.parametrize("expected", [{"number": None}, {"digest": None}])
    def test_without_a_publisher_there_is_nothing_to_contradict(self, expected):
        assert weights.label(said({"number": 7, "digest": "wrong"}, expected)) == ()

    def test_tensors_that_were_read_back_excuse_a_digest_only_if_all_are_right(self):
        wrong = {"number": 7, "digest": "wrong", "tensors": {**OURS, "head": "h0"}}
        assert [e.code for e in weights.label(said(wrong))] == ["WGT05"]


class TestTensors:
    @pytest.mark.parametrize("number", [7, None])
    def test_some_that_are_not_the_published_ones_are_named(self, number):
        (found,) = weights.tensors(said({"number": number, "tensors": STALE}))
        assert (found.code, found.certain, found.figures) == ("WGT02", True, {"tensors": ["head"]})
        assert "1 of 3 tensors" in found.why

    @pytest.mark.parametrize("held", [{}, OURS, dict.fromkeys(OURS, "other")])
    def test_none_or_all_of_them_say_nothing_of_parts(self, held):
        assert weights.tensors(said({"number": 7, "tensors": held})) == ()

    def test_an_engine_that_says_it_is_behind_hides_nothing(self):
        assert weights.tensors(said({"number": 6, "tensors": STALE})) == ()

    def test_only_names_that_both_have_are_compared(self):
        packed = {"embedding": "e1", "layers.0.down": "d0", "packed.scales": "s"}
        (found,) = weights.tensors(said({"number": 7, "tensors": packed}))
        assert found.figures == {"tensors": ["layers.0.down"]}
        assert "1 of 2 tensors" in found.why


class TestVersions:
    @pytest.mark.parametrize(
        ("engine", "code"),
        [
            ({"number": 0, "digest": None, "tensors": {}}, "WGT01"),
            ({"number": None, "digest": None, "tensors": {}}, "WGT01"),
            ({"number": 1, "digest": None, "tensors": {}}, "WGT08"),
            ({"number": 1, "digest": "expected", "tensors": {}}, "WGT08"),
            ({"number": 1, "digest": "another", "tensors": {}}, "WGT05"),
            ({"number": 1, "digest": "expected", "tensors": "trainer"}, "WGT10"),
        ],
    )
    def test_what_the_engine_says_tells_lost_updates_apart(self, recorded: Any, like: Any, engine, code):
        look = recorded("WGT08")
        seen = look.observation
        digest = seen.expected.digest if engine["digest"] == "expected" else engine["digest"]
        tensors = seen.trainer.tensors if engine["tensors"] == "trainer" else engine["tensors"]
        told = replace(seen.engine, number=engine["number"], digest=digest, tensors=tensors)
        (found,) = weights.versions(like(look, engine=told))
        assert (found.code, found.figures["version"]) == (code, 0)
        assert found.explained > 0.999

    @pytest.mark.parametrize("code", ["WGT01", "WGT05", "WGT08", "WGT10"])
    def test_each_of_them_in_a_real_run(self, recorded: Any, code):
        assert [e.code for e in weights.versions(recorded(code))] == [code]

    def test_a_stale_head_is_no_stale_version(self, recorded: Any):
        (found,) = weights.versions(recorded("WGT04"))
        assert (found.code, found.figures["version"]) == ("WGT04", 0)

    def test_a_stale_layer_is_named_by_its_tensors(self, recorded: Any):
        found = [e for e in weights.versions(recorded("WGT02")) if e.code == "WGT02"]
        assert found
        stale = found[0].figures["tensors"]
        assert stale
        assert {name.split(".")[1] for name in stale if name.startswith("layers.")} == {"1"}

    def test_the_newest_version_is_not_tried(self, recorded: Any, like: Any):
        look = recorded("WGT08")
        with pytest.raises(CannotAsk, match="newest version is not known"):
            weights.versions(like(look, expected=Statement("publisher")))
        assert weights.versions(like(look, expected=replace(look.observation.expected, number=0))) == []


class TestTorn:
    def test_a_forward_in_two_versions_is_seen_where_it_happened(self, recorded: Any):
        (found,) = weights.torn(recorded("WGT03"))
        assert found.code == "WGT03"
        assert found.explained > 0.8
        assert found.figures["from"] == "layer 1"

    def test_without_an_update_in_the_middle_there_is_none(self, recorded: Any):
        assert weights.torn(recorded("WGT08")) == ()

    @pytest.mark.parametrize("versions", [None, np.array([0, 1], np.int32)])
    def test_tokens_without_their_versions_say_nothing(self, recorded: Any, like: Any, versions):
        look = recorded("WGT03")
        samples = [replace(s, versions=versions, spans=()) for s in look.samples]
        assert weights.torn(like(look, samples=samples)) == ()

    @pytest.mark.parametrize("nothing", [None, np.empty(0, np.int32)])
    def test_a_sample_that_says_no_version_does_not_stop_the_others(self, recorded: Any, like: Any, nothing):
        look = recorded("WGT03")
        silent = replace(look.samples[0], versions=nothing, spans=())
        (series,) = look.reference.score([silent], weights.Hypothesis())
        samples = [*look.samples[1:], replace(silent, sampler=series)]
        assert [e.code for e in weights.torn(like(look, samples=samples))] == ["WGT03"]


class TestIdentity:
    def test_weights_that_arrive_again_and_change_something(self, broken: Any):
        (found,) = weights.identity(broken("WGT06"))
        assert (found.code, found.certain) == ("WGT06", True)
        assert found.figures["moved"] > 0

    def test_a_lost_update_does_not_move_when_it_is_sent_again(self, broken: Any):
        assert weights.identity(broken("WGT08")) == ()

    def test_what_noise_moves_is_no_evidence(self, broken: Any, like: Any):
        look = broken("WGT06")
        (found,) = weights.identity(look)
        assert weights.identity(like(look, grain=found.figures["moved"])) == ()

    def test_an_empty_completion_hides_nothing(self, broken: Any, like: Any, emptied: Any):
        look = broken("WGT06")
        samples = [emptied(look.samples[0]), *look.samples[1:]]
        assert [e.code for e in weights.identity(like(look, samples=samples))] == ["WGT06"]

    @pytest.mark.parametrize("lost", ["update", "score"])
    def test_it_needs_an_engine_that_takes_weights_and_scores(self, clean: Look, like: Any, without: Any, lost):
        for look in (like(clean, subject=without(clean, lost)), like(clean, subject=None)):
            with pytest.raises(CannotAsk, match="takes weights and scores tokens"):
                weights.identity(look)

    def test_it_needs_the_number_of_the_weights(self, clean: Look, like: Any):
        with pytest.raises(CannotAsk, match="identity update"):
            weights.identity(like(clean, expected=Statement("publisher")))


class TestScale:
    def test_the_factor_is_found(self, recorded: Any):
        (found,) = weights.scale(recorded("WGT09"))
        assert found.code == "WGT09"
        assert f"times {found.figures['factor']:.4f}" in found.why

    @pytest.mark.parametrize("factor", [0.6, 0.97, 1.4])
    def test_it_is_the_one_that_was_put_in(self, clean: Look, like: Any, factor):
        scaled = clean.score(weights.Hypothesis(weights.Reading(scale=factor)))
        samples = [replace(s, sampler=series) for s, series in zip(clean.samples, scaled, strict=True)]
        (found,) = weights.scale(like(clean, samples=samples))
        assert found.figures["factor"] == pytest.approx(factor, abs=2e-3)

    def test_other_weights_are_no_factor(self, recorded: Any):
        assert weights.scale(recorded("WGT08")) == ()


class TestMasters:
    def test_a_trainer_that_scores_with_its_masters(self, recorded: Any):
        (found,) = weights.masters(recorded("WGT07"))
        assert found.code == "WGT07"
        assert found.explained > 0.999

    def test_a_trainer_that_scores_with_its_published_weights_is_only_newer(self, recorded: Any, like: Any):
        """Masters explain that about as well; published weights do better, so nobody is blamed."""
        look = recorded("WGT07", in_flight=True)
        honest = look.score()
        assert look.reference is not None
        now = look.reference.score([replace(s, versions=None, spans=()) for s in look.samples], weights.Hypothesis())
        assert any(not np.array_equal(a, b) for a, b in zip(now, honest, strict=True))
        samples = [replace(s, trainer=series) for s, series in zip(look.samples, now, strict=True)]
        newer = like(look, samples=samples)
        assert newer.explained(weights.Hypothesis(weights=weights.Weights(name="masters")), "trainer") > ENOUGH
        assert weights.masters(newer) == []

    def test_without_masters_nobody_can_say(self, clean: Look, like: Any):
        class Nameless:
            def __init__(self, reference: Any) -> None:
                self.names, self.versions = (), reference.versions

        for reference in (None, Nameless(clean.reference)):
            with pytest.raises(CannotAsk, match="fp32 weights were not given"):
                weights.masters(like(clean, reference=reference))


class TestSilence:
    def test_on_clean_runs_nothing_is_found(self, clean: Look, clean_in_flight: Look):
        for look in (clean, clean_in_flight):
            for probe in (weights.label, weights.tensors, *DEEP, weights.masters):
                assert list(probe(look)) == [], probe.__name__

    @pytest.mark.parametrize("probe", DEEP)
    def test_without_a_reference_nobody_can_say(self, clean: Look, like: Callable[..., Look], probe):
        with pytest.raises(CannotAsk, match="reference: none was given"):
            probe(like(clean, reference=None))

    @pytest.mark.parametrize("probe", DEEP)
    def test_without_samples_nobody_can_say(self, clean: Look, like: Callable[..., Look], probe):
        lone: list[Sample] = [replace(s, trainer=None) for s in clean.samples]
        with pytest.raises(CannotAsk, match="none can be compared"):
            probe(like(clean, samples=lone))
