"""NUM: one part of the forward in a narrower dtype; a trainer that does not agree with itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lockstep.parity.hypothesis import Hypothesis, Rounding
from lockstep.parity.observation import Observation, Sample
from lockstep.parity.probe import Look
from lockstep.parity.probes import numerics
from lockstep.parity.side import CannotAsk

IDS = np.arange(4, dtype=np.int32)
SERIES = np.array([-1, -2, -0.5, -3], np.float32)


def passes(*moved: float | None, grain: float = 0.0) -> Look:
    """Samples whose second pass is so far from the first at one token; None: there was no second pass."""
    samples = [
        Sample(str(i), IDS[:1], IDS, SERIES, SERIES, again=None if by is None else SERIES + by * (IDS == 2))
        for i, by in enumerate(moved)
    ]
    return Look(Observation(1, samples), grain=grain)


class Lacking:
    """A reference that lacks some factors of another one."""

    def __init__(self, reference: Any, *lacked: str) -> None:
        self._reference, self._lacked, self.asked = reference, lacked, 0

    def score(self, samples: Any, hypothesis: Hypothesis) -> Any:
        self.asked += 1
        for name in self._lacked:
            if getattr(hypothesis.rounding, name):
                raise CannotAsk(f"this reference cannot round its {name}")
        return self._reference.score(samples, hypothesis)


class TestRoundings:
    @pytest.mark.parametrize(
        ("code", "seed", "what"),
        [
            ("NUM01", 0, "logits come from a bf16 product"),
            ("NUM03", 0, "rotary angles are bf16"),
            ("NUM04", 0, "norms are summed in bf16"),
            ("NUM05", 0, "keys and values are int8"),
            ("NUM05", 1, "weights are int8"),
        ],
    )
    def test_the_part_that_is_narrower_is_named(self, recorded: Any, code, seed, what):
        found = max(numerics.roundings(recorded(code, seed=seed)), key=lambda e: e.explained)
        assert found.code == code
        assert what in found.why
        assert found.explained > 0.95

    def test_an_engine_that_calls_its_head_wide_is_wrong_about_it(self, recorded: Any):
        (found,) = numerics.roundings(recorded("NUM02"))
        assert found.code == "NUM02"
        assert found.why.endswith("although it says float32")

    @pytest.mark.parametrize(
        ("said", "code"),
        [
            ({"head_dtype": "bfloat16"}, "NUM01"),
            ({}, "NUM01"),
            ({"head_dtype": None}, "NUM01"),
            *(({"head_dtype": wide}, "NUM02") for wide in numerics.WIDE),
        ],
    )
    def test_what_the_engine_says_of_its_head_decides(self, recorded: Any, like: Any, said, code):
        look = recorded("NUM01")
        told = like(look, engine=replace(look.observation.engine, settings=said))
        assert [e.code for e in numerics.roundings(told)] == [code]

    def test_older_weights_are_no_rounding(self, recorded: Any):
        assert numerics.roundings(recorded("WGT08")) == []

    def test_what_the_reference_lacks_does_not_hide_what_it_has(self, recorded: Any, like: Any):
        look = recorded("NUM03")
        lacking = Lacking(look.reference, "norm", "kv")
        assert [e.code for e in numerics.roundings(like(look, reference=lacking))] == ["NUM03"]
        assert lacking.asked == 1 + len(numerics.ROUNDINGS)

    def test_if_nothing_is_found_what_was_lacking_is_told(self, recorded: Any, like: Any):
        look = recorded("NUM03")
        with pytest.raises(CannotAsk, match="cannot round its rope"):
            numerics.roundings(like(look, reference=Lacking(look.reference, "rope")))

    @pytest.mark.parametrize(("code", "rounding"), [(code, rounding) for code, rounding, _ in numerics.ROUNDINGS])
    def test_each_is_told_from_the_others(self, clean: Look, like: Any, codes: Any, code: str, rounding: Rounding):
        series = clean.score(Hypothesis(rounding=rounding))
        samples = [replace(s, sampler=own) for s, own in zip(clean.samples, series, strict=True)]
        found = numerics.roundings(like(clean, samples=samples))
        assert codes(found)[0] == ("NUM02" if code == "NUM01" else code)
        assert max(e.explained for e in found) == 1.0


class TestItself:
    def test_two_passes_that_differ_are_a_contradiction(self):
        (found,) = numerics.itself(passes(0.0, 0.5))
        assert (found.code, found.certain) == ("NUM06", True)
        assert found.figures == {"mean": 0.0625, "max": 0.5}
        assert "in 1 of 8 logprobs" in found.why

    def test_two_passes_that_agree_are_none(self):
        assert numerics.itself(passes(0.0, 0.0)) == ()

    def test_one_bit_is_enough_on_an_exact_pair(self):
        assert [e.code for e in numerics.itself(passes(2.0**-22))] == ["NUM06"]

    def test_noise_is_not(self):
        assert numerics.itself(passes(0.5, grain=0.125)) == ()
        assert [e.code for e in numerics.itself(passes(0.5, grain=0.124))] == ["NUM06"]

    def test_samples_with_one_pass_take_no_part(self):
        (found,) = numerics.itself(passes(None, 0.5))
        assert found.figures["mean"] == 0.125

    @pytest.mark.parametrize("again", [None, SERIES[:3]])
    def test_one_pass_is_nothing_to_compare(self, again):
        sample = Sample("a", IDS[:1], IDS, SERIES, SERIES, again=again)
        for samples in ([sample], []):
            with pytest.raises(CannotAsk, match="only one pass was recorded"):
                numerics.itself(Look(Observation(1, samples)))

    def test_in_a_real_run(self, recorded: Any, clean: Look):
        assert [e.code for e in numerics.itself(recorded("NUM06"))] == ["NUM06"]
        with pytest.raises(CannotAsk):
            numerics.itself(clean)


class TestSilence:
    def test_on_clean_runs_nothing_is_found(self, clean: Look, clean_in_flight: Look):
        for look in (clean, clean_in_flight):
            assert list(numerics.roundings(look)) == []

    def test_nothing_is_tried_where_nothing_deviates(self, clean: Look, like: Any):
        reference = Lacking(clean.reference)
        numerics.roundings(like(clean, reference=reference))
        assert reference.asked == 1

    def test_without_a_reference_nobody_can_say(self, clean: Look, like: Callable[..., Look]):
        with pytest.raises(CannotAsk, match="reference: none was given"):
            numerics.roundings(like(clean, reference=None))
