"""What an auditor concludes: which cause it names, when it says that it cannot, what it remembers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.errors import InputError
from lockstep.harness.faults import INJECTIONS
from lockstep.harness.laboratory import Laboratory
from lockstep.harness.networks import Networks
from lockstep.harness.scoreboard import auditor_of
from lockstep.harness.setup import Setup
from lockstep.parity import auditor as module
from lockstep.parity.auditor import CLOSE, MEMORY, Auditor, difference
from lockstep.parity.evidence import Evidence, Finding
from lockstep.parity.fault import Layer
from lockstep.parity.floor import Floor
from lockstep.parity.observation import Observation, Sample
from lockstep.parity.probe import ENOUGH, Look
from lockstep.parity.side import CannotAsk

IDS = np.arange(12, dtype=np.int32)
SERIES = np.linspace(-3, -0.25, 12).astype(np.float32)
CODES = ("SEM01", "DAT01", "WGT01", "CAC01", "PTH01", "NUM01", "OBJ01")


def pair(difference: np.ndarray | float = 0.0, name: str = "a") -> Sample:
    """A sample whose trainer is so far from its sampler."""
    return Sample(name, IDS[:2], IDS, SERIES, (SERIES + difference).astype(np.float32))


def step(*samples: Sample, number: int = 1) -> Observation:
    return Observation(number, samples or (pair(),))


def finds(*found: Evidence) -> Callable[[Look], Sequence[Evidence]]:
    return lambda _: found


@dataclass
class Probes:
    """The tables of an auditor, filled by hand."""

    cheap: dict[str, Any] = field(default_factory=dict)
    deep: dict[str, Any] = field(default_factory=dict)


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> Probes:
    tables = Probes()
    monkeypatch.setattr(module, "CHEAP", tables.cheap)
    monkeypatch.setattr(module, "DEEP", tables.deep)
    return tables


def concluded(*found: Evidence, moved: bool = True) -> Finding:
    return module._conclude(step(), found, moved, {})


class TestWhenItLooksDeeper:
    def test_equal_bits_are_parity_and_nothing_deep_is_asked(self, probes: Probes):
        asked = []
        probes.deep["deep"] = lambda look: asked.append(look) or ()
        finding = Auditor().look(step(pair(name="a"), pair(name="b")))
        assert (finding.status, finding.code, finding.layer) == ("parity", None, None)
        assert finding.figures == {"tokens": 24.0, "differing": 0.0, "mean": 0.0, "max": 0.0}
        assert asked == []

    @pytest.mark.parametrize("floor", [None, Floor.exact()])
    def test_one_bit_moves_an_exact_pair(self, probes: Probes, floor: Floor | None):
        trainer = SERIES.copy()
        trainer.view(np.int32)[7] ^= 1
        probes.deep["deep"] = finds(Evidence("NUM01", "", 0.9))
        finding = Auditor(floor=floor).look(step(replace(pair(), trainer=trainer)))
        assert finding.code == "NUM01"
        assert finding.figures["differing"] == 1
        assert finding.figures["max"] == finding.figures["mean"] * 12 > 0

    def test_a_contradiction_alone_makes_it_look_deeper(self, probes: Probes):
        probes.cheap["label"] = finds(Evidence("WGT05", "", certain=True))
        probes.deep["readings"] = finds(Evidence("SEM01", "", 0.9))
        finding = Auditor().look(step())
        assert finding.code == "WGT05"
        assert [e.code for e in finding.evidence] == ["WGT05", "SEM01"]

    def test_without_a_mismatch_an_explanation_is_kept_and_not_blamed(self, probes: Probes):
        probes.cheap["hunch"] = finds(Evidence("SEM01", "", 1.0))
        finding = Auditor().look(step())
        assert finding.status == "parity"
        assert [e.code for e in finding.evidence] == ["SEM01"]

    def test_a_mismatch_that_nothing_explains_is_undetermined(self, probes: Probes):
        probes.deep["weak"] = finds(Evidence("SEM01", "", ENOUGH - 0.01))
        finding = Auditor().look(step(pair(0.5), number=9))
        assert (finding.status, finding.step, finding.code) == ("undetermined", 9, None)
        assert [e.code for e in finding.evidence] == ["SEM01"]
        assert finding.figures["mean"] == pytest.approx(0.5)


class TestLayersThatCannotWin:
    """A layer is asked only while something of it could still be named before what an earlier one explains."""

    @pytest.fixture
    def asked(self, probes: Probes, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], list[str]]:
        def ask(explained: float) -> list[str]:
            seen: list[str] = []
            layers = {"first": Layer.SEM, "beside": Layer.SEM, "later": Layer.WGT, "last": Layer.NUM}
            monkeypatch.setattr(module, "LAYER_OF", layers)
            for name in layers:
                probes.deep[name] = lambda _, name=name: seen.append(name) or ()
            probes.deep["first"] = finds(Evidence("SEM01", "", explained))
            Auditor().look(step(pair(0.5)))
            return seen

        return ask

    def test_all_is_explained_so_only_the_rest_of_the_layer_is_asked(self, asked):
        assert asked(1.0) == ["beside"]

    def test_as_long_as_a_later_cause_could_be_better_all_are_asked(self, asked):
        assert asked(1.0 - CLOSE) == ["beside", "later", "last"] == asked(0.0)

    def test_the_answer_is_the_one_that_it_would_have_been(self, asked, probes: Probes):
        asked(1.0 - CLOSE + 1e-6)
        probes.deep["later"] = finds(Evidence("WGT01", "", 1.0))
        assert Auditor().look(step(pair(0.5))).code == "SEM01"
        assert concluded(Evidence("SEM01", "", 1.0 - CLOSE + 1e-6), Evidence("WGT01", "", 1.0)).code == "SEM01"


class TestSkipped:
    def test_a_probe_that_cannot_look_is_told_and_the_others_go_on(self, probes: Probes):
        def unable(_: Look) -> Sequence[Evidence]:
            raise CannotAsk("no engine here")

        probes.cheap |= {"first": unable, "second": finds()}
        probes.deep |= {"third": unable, "fourth": finds(Evidence("CAC01", "", 0.8))}
        finding = Auditor().look(step(pair(1.0)))
        assert finding.code == "CAC01"
        assert finding.skipped == {"first": "no engine here", "third": "no engine here"}

    def test_what_was_not_asked_was_not_skipped(self, probes: Probes):
        def unable(_: Look) -> Sequence[Evidence]:
            raise CannotAsk("no engine here")

        probes.deep["third"] = unable
        assert Auditor().look(step()).skipped == {}

    def test_an_engine_that_fails_is_no_abstention(self, probes: Probes):
        def fails(_: Look) -> Sequence[Evidence]:
            raise InputError("the engine is gone")

        probes.cheap["first"] = fails
        with pytest.raises(InputError, match="gone"):
            Auditor().look(step())


class TestTheCauseThatIsNamed:
    def test_of_equally_good_causes_the_earliest_layer(self):
        assert concluded(Evidence("NUM01", "", 1.0), Evidence("WGT01", "", 1.0 - CLOSE / 2)).code == "WGT01"
        assert concluded(Evidence("NUM01", "", 1.0), Evidence("WGT01", "", 1.0 - 2 * CLOSE)).code == "NUM01"

    def test_within_a_layer_the_better_explanation(self):
        assert concluded(Evidence("WGT02", "", 0.96), Evidence("WGT04", "", 0.99)).code == "WGT04"

    def test_within_a_layer_a_contradiction_comes_before_an_explanation(self):
        assert concluded(Evidence("WGT01", "", 1.0), Evidence("WGT02", "", 0.0, certain=True)).code == "WGT02"

    def test_a_contradiction_counts_as_all_of_it(self):
        certain = Evidence("OBJ02", "", 0.0, certain=True)
        assert concluded(certain, Evidence("WGT01", "", 0.9)).code == "OBJ02"
        assert concluded(certain, Evidence("WGT01", "", 0.97)).code == "WGT01"

    def test_half_is_enough(self):
        assert concluded(Evidence("NUM01", "", ENOUGH)).code == "NUM01"
        assert concluded(Evidence("NUM01", "", ENOUGH - 1e-9)).status == "undetermined"

    def test_the_rest_follows_by_what_it_explains(self):
        weak, strong, named = Evidence("PTH01", "", 0.1), Evidence("OBJ03", "", 0.99), Evidence("SEM01", "", 0.98)
        assert concluded(weak, strong, named).evidence == (named, strong, weak)

    @given(st.lists(st.tuples(st.sampled_from(CODES), st.floats(-1, 1), st.booleans()), max_size=8), st.booleans())
    def test_no_earlier_layer_explained_as_much(self, rows, moved):
        found = [Evidence(code, str(i), share, certain) for i, (code, share, certain) in enumerate(rows)]
        finding = concluded(*found, moved=moved)
        able = [e for e in found if e.certain or (moved and e.explained >= ENOUGH)]
        assert sorted(map(id, finding.evidence)) == sorted(map(id, found))
        assert finding.status == ("fault" if able else "undetermined" if moved else "parity")
        if able:
            named = finding.evidence[0]
            worth = {id(e): 1.0 if e.certain else e.explained for e in able}
            good = [e for e in able if worth[id(e)] > max(worth.values()) - CLOSE]
            assert any(named is e for e in good)
            assert named.layer.rank == min(e.layer.rank for e in good)
            assert finding.layer is Layer.of(named.code)


class TestMemory:
    def test_a_probe_sees_the_steps_before_the_newest_last(self, probes: Probes):
        seen = []
        probes.cheap["memory"] = lambda look: seen.append([o.step for o in look.before]) or ()
        auditor = Auditor()
        for number in range(1, 7):
            auditor.look(step(number=number))
        assert seen[:3] == [[], [1], [1, 2]]
        assert seen[-1] == [5 - MEMORY + 1 + i for i in range(MEMORY)]

    def test_two_auditors_share_nothing(self, probes: Probes):
        seen = []
        probes.cheap["memory"] = lambda look: seen.append(len(look.before)) or ()
        for auditor in (Auditor(), Auditor()):
            auditor.look(step())
        assert seen == [0, 0]


def noisy(count: int, seed: int, size: float = 0.01) -> list[Sample]:
    draw = np.random.default_rng(seed)
    return [pair(draw.normal(0, size, 12), f"{seed}/{i}") for i in range(count)]


class TestAPairWithNoise:
    floor = Floor.of([difference(sample) for sample in noisy(96, 0)])

    def test_its_noise_is_parity_for_as_long_as_it_runs(self, probes: Probes):
        auditor = Auditor(floor=self.floor)
        assert {auditor.look(step(*noisy(8, seed))).status for seed in range(1, 40)} == {"parity"}

    def test_more_than_noise_raises_an_alarm_that_stays(self, probes: Probes):
        auditor = Auditor(floor=self.floor)
        assert auditor.look(step(*noisy(8, 1))).status == "parity"
        assert auditor.look(step(*noisy(8, 2, size=0.2))).status == "undetermined"
        assert auditor.look(step(*noisy(8, 3))).status == "undetermined"

    def test_small_doubts_add_up_over_steps(self, probes: Probes):
        auditor = Auditor(floor=self.floor)
        statuses = [auditor.look(step(*noisy(2, seed, size=0.035))).status for seed in range(1, 30)]
        assert statuses[0] == "parity"
        assert statuses[-1] == "undetermined"
        assert statuses == sorted(statuses)

    def test_a_stricter_rate_of_false_alarms_waits_longer(self, probes: Probes):
        def steps(alpha: float) -> int:
            auditor = Auditor(floor=self.floor, alpha=alpha)
            seeds = range(1, 60)
            return next(seed for seed in seeds if auditor.look(step(*noisy(2, seed, 0.035))).status != "parity")

        assert steps(0.2) < steps(1e-4)

    def test_a_rate_below_the_risk_of_the_floor_is_refused(self, probes: Probes):
        with pytest.raises(InputError, match="its own risk"):
            Auditor(floor=self.floor, alpha=self.floor.risk).look(step())

    def test_probes_are_told_the_grain(self, probes: Probes):
        seen = []
        probes.cheap["grain"] = lambda look: seen.append(look.grain) or ()
        for floor in (None, Floor.exact(), self.floor):
            Auditor(floor=floor).look(step())
        assert seen == [0.0, 0.0, self.floor.grain]

    def test_a_step_without_tokens_is_no_reason_for_anything(self, probes: Probes):
        empty = Sample("e", IDS[:2], IDS[:0], SERIES[:0], SERIES[:0])
        for floor in (None, self.floor):
            auditor = Auditor(floor=floor)
            for observation in (Observation(1, ()), Observation(2, [empty]), Observation(3, [pair(), empty])):
                assert auditor.look(observation).status == "parity"


class TestARealRun:
    def test_an_honest_one_is_parity_and_a_lost_update_is_named(self, networks: Networks):
        with Laboratory(networks, Setup(prompts=2, prefix=18, tail=4)) as laboratory:
            auditor = auditor_of(laboratory)
            for _ in range(2):
                assert auditor.look(laboratory.observe()).status == "parity"
                laboratory.advance()
            INJECTIONS["WGT08"].install(laboratory)
            assert auditor.look(laboratory.observe()).status == "parity"
            laboratory.advance()
            finding = auditor.look(laboratory.observe())
        assert (finding.status, finding.code, finding.step) == ("fault", "WGT08", 4)
        assert finding.evidence[0].explained == pytest.approx(1.0)

    def test_a_completion_without_tokens_hides_no_cause(self, broken: Any, like: Any, emptied: Any):
        look = broken("WGT08", prompts=2, prefix=18, tail=4)
        samples = [emptied(look.samples[0]), *look.samples[1:]]
        finding = Auditor(look.reference, look.subject).look(like(look, samples=samples).observation)
        assert (finding.code, finding.skipped.keys() & {"versions", "identity update"}) == ("WGT08", set())

    def test_without_reference_and_subject_it_says_what_it_could_not_ask(self, recorded: Callable[..., Look]):
        finding = Auditor().look(recorded("WGT08").observation)
        assert finding.status == "undetermined"
        assert {"versions", "identity update", "company and order", "roundings"} <= finding.skipped.keys()
        assert "reference" in finding.skipped["versions"]

    def test_a_pair_that_rounds_otherwise_is_parity_until_its_weights_are_old(self, networks: Networks):
        with Laboratory(networks, Setup(exact=False, dtype="bfloat16", prompts=2, prefix=18, tail=4)) as laboratory:
            auditor = auditor_of(laboratory)
            assert auditor.look(laboratory.observe()).status == "parity"
            INJECTIONS["WGT01"].install(laboratory)
            laboratory.advance()
            finding = auditor.look(laboratory.observe())
        assert finding.figures["differing"] > 0
        assert finding.code == "WGT01"
