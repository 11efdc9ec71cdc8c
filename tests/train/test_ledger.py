"""The accounts of the ledger add up, whatever the batch and however it was cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lockstep.config import CorrectionsConfig
from lockstep.train.corrections import CORRECTIONS, Cause, Corrected
from lockstep.train.ledger import REMOVING, SIGNS, Entry, entry, metrics

TYPES = sorted(CORRECTIONS)


def sign_of(advantage: float) -> str:
    return "positive" if advantage > 0 else "negative" if advantage < 0 else "zero"


def entered(kind: str, rows: list[tuple[float, float, float]]) -> tuple[Entry, Corrected]:
    """The entry of tokens given as (anchor, sampler, advantage), each a sequence of its own."""
    anchor, sampler, advantages = torch.tensor(rows, dtype=torch.float32).T
    found = CORRECTIONS[kind](anchor, sampler, torch.arange(len(rows)), CorrectionsConfig(type=kind))  # type: ignore[arg-type]
    return entry(advantages, found, advantages > 1), found


rows = st.lists(
    st.tuples(st.floats(-6, 0), st.floats(-6, 0), st.sampled_from([-2.0, -0.5, 0.0, -0.0, 0.25, 1.5])),
    min_size=1,
    max_size=30,
)


@pytest.mark.parametrize("kind", TYPES)
@given(parts=st.lists(rows, min_size=1, max_size=4))
def test_the_accounts_add_up_to_the_tokens(kind: str, parts: list[list[tuple[float, float, float]]]) -> None:
    tokens = [row for part in parts for row in part]
    entries, corrected = zip(*(entered(kind, part) for part in parts), strict=True)
    got = metrics(entries)
    weights = np.concatenate([found.weights_N.numpy() for found in corrected]).astype(np.float64)
    causes = [Cause(cause) for found in corrected for cause in found.causes_N.tolist()]
    accounts = {
        name: value
        for name, value in got.items()
        if name.startswith(("corrections/kept", "corrections/capped", "corrections/removed"))
    }
    assert len(accounts) == len(SIGNS) * len(Cause)
    assert all(type(value) is int for value in accounts.values())
    assert sum(accounts.values()) == len(tokens)
    for sign in SIGNS:
        mine = [cause for cause, row in zip(causes, tokens, strict=True) if sign_of(row[2]) == sign]
        assert got[f"corrections/kept_{sign}"] == mine.count(Cause.NONE)
        assert got[f"corrections/capped_{sign}"] == mine.count(Cause.CAPPED)
        for cause in REMOVING:
            assert got[f"corrections/removed_{sign}/{cause.name.lower()}"] == mine.count(cause)
        if sign != "zero":
            mass = [abs(row[2]) for row in tokens if sign_of(row[2]) == sign]
            gone = [
                abs(row[2])
                for row, cause in zip(tokens, causes, strict=True)
                if sign_of(row[2]) == sign and cause in REMOVING
            ]
            assert got[f"corrections/advantage_{sign}"] == pytest.approx(sum(mass))
            assert got[f"corrections/advantage_removed_{sign}"] == pytest.approx(sum(gone) / sum(mass) if mass else 0.0)
    removed = sum(cause in REMOVING for cause in causes)
    assert got["corrections/frac_removed"] == removed / len(tokens) == float(np.mean(weights == 0))
    assert got["corrections/frac_capped"] == causes.count(Cause.CAPPED) / len(tokens)
    assert got["corrections/frac_clipped"] == sum(row[2] > 1 for row in tokens) / len(tokens)
    assert got["corrections/mean_weight"] == pytest.approx(weights.mean())
    ess = weights.sum() ** 2 / (len(weights) * np.square(weights).sum()) if weights.any() else 0.0
    assert got["corrections/ess_after"] == pytest.approx(ess)
    assert 0 <= got["corrections/ess_after"] <= 1 + 1e-12


def test_an_entry_by_hand() -> None:
    corrected = Corrected(
        torch.tensor([1.0, 2.0, 0.0, 0.0, 0.5]),
        torch.tensor([Cause.NONE, Cause.CAPPED, Cause.TOO_HIGH, Cause.TV, Cause.NONE], dtype=torch.uint8),
    )
    advantages = torch.tensor([1.0, -1.0, 3.0, -0.5, 0.0])
    got = metrics([entry(advantages, corrected, torch.tensor([True, False, False, False, False]))])
    zeros = {name: value for name, value in got.items() if value == 0}
    assert {name: value for name, value in got.items() if name not in zeros} == pytest.approx(
        {
            "corrections/frac_removed": 0.4,
            "corrections/frac_capped": 0.2,
            "corrections/frac_clipped": 0.2,
            "corrections/mean_weight": 0.7,
            "corrections/ess_after": 3.5**2 / (5 * 5.25),
            "corrections/kept_positive": 1,
            "corrections/removed_positive/too_high": 1,
            "corrections/capped_negative": 1,
            "corrections/removed_negative/tv": 1,
            "corrections/kept_zero": 1,
            "corrections/advantage_positive": 4.0,
            "corrections/advantage_removed_positive": 0.75,
            "corrections/advantage_negative": 1.5,
            "corrections/advantage_removed_negative": 1 / 3,
        }
    )
    assert len(zeros) == 15 - 5


def test_a_batch_of_which_nothing_is_left() -> None:
    gone = Corrected(torch.zeros(2), torch.full((2,), Cause.TOO_LOW.value, dtype=torch.uint8))
    got = metrics([entry(torch.tensor([1.0, 1.0]), gone, torch.zeros(2, dtype=torch.bool))])
    assert got["corrections/frac_removed"] == 1.0
    assert got["corrections/ess_after"] == got["corrections/mean_weight"] == 0.0
    assert got["corrections/advantage_removed_positive"] == 1.0
    assert got["corrections/advantage_removed_negative"] == 0.0, "there was nothing to remove"


def test_without_a_correction_there_is_no_ledger() -> None:
    assert metrics([]) == {}


@given(whole=rows, cut=st.integers(0, 30))
def test_counts_do_not_depend_on_the_microbatches(whole: list[tuple[float, float, float]], cut: int) -> None:
    parts = [part for part in (whole[:cut], whole[cut:]) if part]
    once, twice = metrics([entered("masked", whole)[0]]), metrics([entered("masked", part)[0] for part in parts])
    assert once == pytest.approx(twice, rel=1e-12, abs=1e-15)
    assert {k: v for k, v in once.items() if type(v) is int} == {k: v for k, v in twice.items() if type(v) is int}
