"""SEM: each reading of the logits explains what it should; and nothing is called filled in that is equal by right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lockstep.core import SamplingParams
from lockstep.harness.faults import INJECTIONS
from lockstep.harness.laboratory import Laboratory
from lockstep.harness.networks import Networks
from lockstep.harness.scoreboard import auditor_of
from lockstep.harness.setup import Setup
from lockstep.parity.hypothesis import Hypothesis, Reading
from lockstep.parity.observation import Observation, Sample, Statement
from lockstep.parity.probe import Look
from lockstep.parity.probes import semantics
from lockstep.parity.side import CannotAsk

CODES = [code for code in INJECTIONS if code.startswith("SEM")]


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    return Networks(Path(tmp_path_factory.mktemp("networks")))


def looked(networks: Networks, code: str | None, seed: int = 0, **fields) -> tuple[Look, Laboratory]:
    """The first step on which a fault acts, as a probe sees it; the laboratory is the caller's to close."""
    injection = INJECTIONS[code] if code else None
    small = {"prompts": 2, "exact": True, "in_flight": False, "family": "llama", "dtype": "float32"}
    setup = Setup.random(seed, **{**small, **(injection.setup if injection else {}), **fields})
    laboratory = Laboratory(networks, setup)
    auditor = auditor_of(laboratory)
    laboratory.observe()
    if injection:
        injection.install(laboratory)
    laboratory.advance()
    return Look(laboratory.observe(), auditor.reference, auditor.subject), laboratory


def codes(found) -> list[str]:
    return [evidence.code for evidence in sorted(found, key=lambda e: -e.explained)]


@pytest.mark.parametrize("code", [code for code in CODES if code not in ("SEM07", "SEM08")])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_reading_that_was_made_explains_most(networks, code, seed):
    look, laboratory = looked(networks, code, seed)
    with laboratory:
        found = semantics.readings(look)
    assert codes(found)[0] == code
    best = max(evidence.explained for evidence in found)
    assert best > 0.97 or code == "SEM04"


def test_a_clean_pair_is_read_as_it_was_asked(networks):
    look, laboratory = looked(networks, None, temperature=0.7, top_p=0.8, repetition_penalty=1.2)
    with laboratory:
        assert not semantics.readings(look) and not semantics.rescored(look) and not semantics.filled(look)


def test_without_a_reference_no_reading_can_be_tried(networks):
    look, laboratory = looked(networks, None)
    with laboratory, pytest.raises(CannotAsk):
        semantics.readings(Look(look.observation))


class TestRescored:
    def test_scores_as_a_prompt_are_told_from_raw_logprobs(self, networks):
        look, laboratory = looked(networks, "SEM07")
        with laboratory:
            (found,) = semantics.rescored(look)
        assert found.code == "SEM07" and found.explained > 0.99

    def test_raw_logprobs_of_the_engine_itself_are_not_scores(self, networks):
        look, laboratory = looked(networks, "SEM01")
        with laboratory:
            assert not semantics.rescored(look)

    def test_an_engine_whose_draws_and_scores_are_both_raw_is_not_told_apart_by_its_scores(self, networks):
        """As vLLM's defaults are: the series are its own, so where they came from is no fault."""
        look, laboratory = looked(networks, "SEM01")
        with laboratory:
            straight, raw = look.subject, Hypothesis(Reading("raw"))

            class Raw:
                can = straight.can
                sample = straight.sample

                def score(self, samples):
                    return look.reference.score(samples, raw)

            assert not semantics.rescored(Look(look.observation, look.reference, Raw()))

    def test_it_takes_a_live_engine(self, networks):
        look, laboratory = looked(networks, "SEM07")
        with laboratory, pytest.raises(CannotAsk, match="live engine"):
            semantics.rescored(Look(look.observation, look.reference))


class TestUnasked:
    def test_what_the_engine_echoes_is_tried_first_and_said(self, networks):
        look, laboratory = looked(networks, "SEM04", 1)
        with laboratory:
            echoed = look.observation.engine.settings["sampling"]
            found = next(e for e in semantics.readings(look) if e.code == "SEM04")
        assert all(f"{name}={value}" in found.why for name, value in echoed.items())

    def test_a_wrong_echo_is_not_believed(self, networks):
        look, laboratory = looked(networks, "SEM04", 0)
        with laboratory:
            said = replace(look.observation.engine, settings={"sampling": {"temperature": 5.0}})
            look.observation = replace(look.observation, engine=said)
            found = next(e for e in semantics.readings(look) if e.code == "SEM04")
        assert "temperature=5.0" not in found.why


def sample(name: str, sampler, trainer, group: str = "") -> Sample:
    ids = np.arange(len(sampler), dtype=np.int32)
    return Sample(name, ids[:1], ids, np.float32(sampler), np.float32(trainer), SamplingParams(), group)


def filled(*samples: Sample) -> list:
    return list(semantics.filled(Look(Observation(1, samples, Statement("engine")))))


class TestFilled:
    honest = np.float32([-1.25, -0.5, -2.5, -3.0, -0.75, -1.0, -4.0, -2.0])

    @pytest.mark.parametrize("value", [0.0, -100.0, -9999.0, 1.0])
    @pytest.mark.parametrize("side", ["sampler", "trainer"])
    def test_one_value_at_many_places(self, value, side):
        holes = np.where(np.arange(8) % 2, np.float32(value), self.honest)
        series = (holes, self.honest) if side == "sampler" else (self.honest, holes)
        (found,) = filled(sample("a", *series))
        assert (found.code, found.figures["value"]) == ("SEM08", value)
        assert found.explained == pytest.approx(1.0)
        assert ("engine" if side == "sampler" else "trainer") in found.why

    def test_three_of_a_kind_are_not_enough(self):
        holes = np.where(np.arange(8) < 3, np.float32(0.0), self.honest)
        assert not filled(sample("a", holes, self.honest))

    def test_equal_values_at_one_place_of_a_group_are_equal_by_right(self):
        """Completions that begin alike have one logprob there, whatever is wrong with it."""
        off = self.honest - np.float32([0.5, *[0] * 7])
        group = [sample(name, off, self.honest, "group") for name in "abcdef"]
        assert not filled(*group)
        strangers = [sample(name, off, self.honest, name) for name in "abcdef"]
        assert {*codes(filled(*strangers))} == {"SEM08"}

    def test_a_value_that_both_sides_have_is_no_hole(self):
        sure = np.zeros(8, np.float32)
        assert not filled(sample("a", sure, sure))

    def test_values_that_explain_little_are_not_the_cause(self):
        ours = self.honest - np.float32(3.0)
        ours[:4] = self.honest[:4] - 0.06
        ours[:4] = np.float32(-1.0)
        theirs = self.honest.copy()
        theirs[:4] = np.float32(-1.06)
        assert not [e for e in filled(sample("a", ours, theirs)) if e.figures["value"] == -1.0]

    def test_nothing_to_compare(self):
        with pytest.raises(CannotAsk):
            filled()
