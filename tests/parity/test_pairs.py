"""What counts as a pair of series, in one place: a lone one is no loss, one of another length is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lockstep.parity.auditor import Auditor
from lockstep.parity.evidence import Finding
from lockstep.parity.floor import Floor
from lockstep.parity.observation import Observation, Sample
from lockstep.parity.verdict import verdict

IDS = np.arange(6, dtype=np.int32)
SERIES = np.linspace(-3, -0.5, 6).astype(np.float32)
PAIR = Sample("a", IDS[:2], IDS, SERIES, SERIES.copy())
EMPTY = np.empty(0, np.float32)
NOISE = [np.full(6, 1e-3) * (1 + at / 50) for at in range(40)]


def look(*samples: Sample, floor: Floor | None = None) -> Finding:
    return Auditor(floor=floor).look(Observation(1, samples))


@pytest.mark.parametrize(
    ("sampler", "trainer", "tokens", "paired"),
    [
        (SERIES, SERIES, 6, True),
        (SERIES, None, 6, False),
        (None, SERIES, 6, False),
        (None, None, 6, False),
        (EMPTY, EMPTY, 0, False),
        (SERIES, EMPTY, 6, True),
        (SERIES, SERIES, 0, True),
        (EMPTY, EMPTY, 6, True),
    ],
)
def test_a_pair_is_what_could_disagree(sampler, trainer, tokens: int, paired: bool) -> None:
    sample = Sample("a", IDS[:2], IDS[:tokens], sampler, trainer)
    assert sample.paired is paired
    assert not sample.comparable or tokens in (0, 6)


@pytest.mark.parametrize("floor", [None, Floor.exact(), Floor.of(NOISE)])
@pytest.mark.parametrize("lone", [{"trainer": None}, {"sampler": None}, {"sampler": None, "trainer": None}])
def test_a_lone_series_is_no_mismatch(lone: dict, floor: Floor | None) -> None:
    finding = look(PAIR, replace(PAIR, id="b", **lone), floor=floor)
    assert finding.status == "parity"
    assert finding.figures["tokens"] == 6  # and it is not counted as compared


@pytest.mark.parametrize("floor", [None, Floor.of(NOISE)])
@pytest.mark.parametrize(
    "broken",
    [{"sampler": SERIES[:5]}, {"trainer": EMPTY}, {"trainer": np.full(6, np.nan, np.float32)}, {"token_ids": IDS[:0]}],
)
def test_a_pair_that_cannot_be_subtracted_is_one(broken: dict, floor: Floor | None) -> None:
    finding = look(PAIR, replace(PAIR, id="b", **broken), floor=floor)
    assert finding.status != "parity"


def test_pairs_beside_lone_series_are_still_compared() -> None:
    moved = SERIES.copy()
    moved.view(np.int32)[3] ^= 1
    finding = look(replace(PAIR, sampler=moved), replace(PAIR, id="b", trainer=None))
    assert finding.status == "undetermined"
    assert finding.figures["differing"] == 1


def test_the_verdict_does_not_claim_a_comparison_that_nobody_made() -> None:
    assert verdict(look(PAIR)) == "parity: 6 tokens compared, nothing beyond the noise floor"
    for samples in ((), (replace(PAIR, trainer=None),)):
        said = verdict(look(*samples))
        assert said.startswith("parity: nothing contradicts itself")
        assert "none was compared" in said
