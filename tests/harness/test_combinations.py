"""Combinations of settings: what is planted acts, what is benign does not, and the search finds exactly the first."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import numpy as np
import pytest

from lockstep.cli import main
from lockstep.cli import prove as command
from lockstep.errors import LockstepError
from lockstep.harness import combinations
from lockstep.harness.combinations import (
    BENIGN,
    BREAKING,
    KNOBS,
    MOST,
    Combination,
    Restored,
    changed,
    combination,
    planted,
    trial,
)  # fmt: skip
from lockstep.harness.faults import INJECTIONS
from lockstep.harness.networks import Networks
from lockstep.parity.qualify.restoration import Restoration
from lockstep.parity.qualify.restore import Workload, restore
from lockstep.parity.qualify.trial import Trial

NOTHING: frozenset[str] = frozenset()


def searched(new: frozenset[str], agrees: Callable[[frozenset[str]], bool | None]) -> Restoration:
    """The search among `new`, if a trial of a kept set has this outcome."""
    return restore(changed(new), Workload(lambda kept: Trial(agrees(kept)), lambda: Trial(True)))


def outcome(planted: set[str], restoration: Restoration, seed: int = 7) -> Combination:
    return Combination(seed, frozenset(planted), NOTHING, restoration, 2.0)


# -- the table


def test_there_are_enough_settings_that_break_and_that_do_not() -> None:
    assert len(KNOBS) >= 12
    assert len(BREAKING) >= 8
    assert len(BENIGN) >= 4
    assert {*BREAKING, *BENIGN} == {knob.name for knob in KNOBS}


def test_every_setting_has_a_name_of_its_own_and_two_values() -> None:
    assert len({knob.name for knob in KNOBS}) == len(KNOBS)
    assert all(knob.old != knob.new for knob in KNOBS)


def test_what_breaks_is_a_fault_of_the_catalogue_and_each_another() -> None:
    codes = [knob.code for knob in KNOBS if knob.code]
    assert set(codes) <= set(INJECTIONS)
    assert len(set(codes)) == len(codes)
    assert len({INJECTIONS[code].install for code in codes}) == len(codes)


def test_a_benign_setting_says_how_it_becomes_new() -> None:
    for knob in KNOBS:
        assert bool(knob.code) != bool(knob.setup or knob.install), knob.name


# -- what is drawn


def test_combinations_have_one_to_four_breaking_settings_and_any_number_of_others() -> None:
    drawn = [planted(seed) for seed in range(200)]
    assert {len(breaking) for breaking, _ in drawn} == set(range(1, MOST + 1))
    assert {len(benign) for _, benign in drawn} == set(range(len(BENIGN) + 1))
    assert set().union(*(breaking for breaking, _ in drawn)) == set(BREAKING)
    assert set().union(*(benign for _, benign in drawn)) == set(BENIGN)
    assert all(breaking <= set(BREAKING) and benign <= set(BENIGN) for breaking, benign in drawn)


def test_a_combination_is_decided_by_its_number() -> None:
    assert [planted(seed) for seed in range(20)] == [planted(seed) for seed in range(20)]
    assert len({planted(seed) for seed in range(20)}) > 15


def test_differences_are_those_that_are_new() -> None:
    found = changed(frozenset({"logprobs_mode", "pages"}))
    assert [(d.name, d.old, d.new) for d in found] == [
        ("logprobs_mode", "processed_logprobs", "raw_logprobs"), ("pages", 96, 64),
    ]  # fmt: skip
    assert changed(NOTHING) == ()


# -- a trial


def test_nothing_new_agrees_in_every_bit(networks: Networks) -> None:
    found = trial(networks, 0, NOTHING)
    assert found.parity is True
    assert (found.figures["mean"], found.figures["step"]) == (0.0, 3)
    assert found.figures["tokens"] == 3 * 2 * 8


def test_all_benign_settings_together_change_no_bit(networks: Networks) -> None:
    assert trial(networks, 0, frozenset(BENIGN)).parity is True


@pytest.mark.parametrize("name", BREAKING)
def test_each_breaking_setting_breaks_parity_by_itself(networks: Networks, name: str) -> None:
    found = trial(networks, 0, frozenset({name}))
    assert found.parity is False
    assert found.figures["step"] in (2, 3)  # the first step is before anything is new
    mean = found.figures["mean"]
    assert isinstance(mean, float) and mean > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 7))
@pytest.mark.parametrize("name", BREAKING)
def test_each_breaking_setting_breaks_parity_in_every_training(networks: Networks, name: str, seed: int) -> None:
    assert trial(networks, seed, frozenset({name})).parity is False


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_no_subset_of_the_benign_settings_changes_a_bit(networks: Networks, seed: int) -> None:
    chosen = np.random.default_rng(seed).permutation(len(BENIGN))[: 1 + seed % len(BENIGN)]
    assert trial(networks, seed, frozenset(BENIGN[i] for i in chosen)).parity is True


def test_a_trial_is_repeatable(networks: Networks) -> None:
    new = frozenset({"kv_cache_dtype", "max_tokens_per_step"})
    assert trial(networks, 3, new) == trial(networks, 3, new)


def test_all_settings_at_once_can_be_run_and_leave_nothing_behind(networks: Networks) -> None:
    assert trial(networks, 0, frozenset({*BREAKING, *BENIGN})).parity is False
    assert trial(networks, 0, NOTHING).parity is True


def test_a_setting_of_the_setup_reaches_the_engine(networks: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Watched(combinations.Laboratory):
        def __init__(self, networks: Networks, setup) -> None:
            super().__init__(networks, setup)
            seen.append((self.engine.config.max_tokens_per_step, self.engine.config.max_sequences, setup.pages))

    monkeypatch.setattr(combinations, "Laboratory", Watched)
    trial(networks, 0, NOTHING)
    trial(networks, 0, frozenset({"max_tokens_per_step", "max_sequences", "pages"}))
    assert seen == [(64, 24, 96), (24, 5, 64)]


# -- a search with real trainings


def test_the_search_finds_what_was_planted(networks: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    new = frozenset({"logprobs_mode", "weights"}), frozenset({"pages", "order"})
    monkeypatch.setattr(combinations, "planted", lambda _: new)
    found = combination(networks, 0)
    assert (found.planted, found.benign) == new
    assert found.restoration.status == "restored"
    assert found.restoration.kept == {"logprobs_mode", "weights"}
    assert found.exact and found.found and not found.wrong
    assert found.seconds > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200, 206))
def test_random_combinations_are_found(networks: Networks, seed: int) -> None:
    found = combination(networks, seed)
    assert found.found, found.wrong
    assert trial(networks, seed, (found.planted | found.benign) - found.restoration.kept).parity is True


# -- what counts as found


def test_the_planted_set_is_found() -> None:
    new = frozenset({"weights", "penalties", "pages"})
    found = outcome({"weights", "penalties"}, searched(new, lambda kept: {"weights", "penalties"} <= kept))
    assert found.exact and found.found


def test_a_larger_set_is_not_found() -> None:
    new = frozenset({"weights", "penalties", "pages"})
    found = outcome({"weights"}, searched(new, lambda kept: {"weights", "penalties"} <= kept))
    assert not found.exact and not found.found
    assert found.wrong == "combination 7: weights planted, restored: penalties, weights"


def test_a_proven_smaller_set_counts_as_found_but_not_as_exact() -> None:
    new = frozenset({"weights", "penalties"})
    found = outcome({"weights", "penalties"}, searched(new, lambda kept: "weights" in kept))
    assert found.restoration.smallest == "counted"
    assert found.found and not found.exact


def test_a_combination_that_masks_itself_whole_is_found_as_parity() -> None:
    found = outcome({"weights"}, searched(frozenset({"weights"}), lambda _: True))
    assert found.restoration.status == "parity"
    assert found.found and not found.exact


@pytest.mark.parametrize("agrees", [False, None])
def test_no_answer_and_no_restoration_are_not_found(agrees: bool | None) -> None:
    found = outcome({"weights"}, searched(frozenset({"weights"}), lambda _: agrees))
    assert not found.found
    assert found.wrong.endswith("nothing")


def test_sums_count_by_the_number_of_planted_settings() -> None:
    good = outcome({"weights"}, searched(frozenset({"weights"}), lambda kept: "weights" in kept))
    bad = outcome({"weights", "penalties"}, searched(frozenset({"weights"}), lambda _: False))
    total = Restored().with_one(good).with_one(bad).with_one(good)
    assert (total.combinations, total.exact, total.found) == (3, 2, 2)
    assert total.by_size == ((2, 2), (0, 1), (0, 0), (0, 0))
    assert total.trials == 2 * len(good.restoration.records) + len(bad.restoration.records)
    assert total.most_trials == max(len(one.restoration.records) for one in (good, bad))
    assert total.seconds == 6.0
    assert total.missed == (bad.wrong,)


# -- many of them, and the command


class _Here:
    """A pool that runs everything here."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __enter__(self) -> _Here:
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, function: Callable[..., object], *arguments: object) -> Future:
        done: Future = Future()
        done.set_result(function(*arguments))
        return done


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Searches without trainings; the list has their numbers. Every seventh is not found."""
    ran: list[int] = []

    def one(_: Networks, seed: int) -> Combination:
        ran.append(seed)
        needed = frozenset({"weights", "pages"} if seed % 7 == 6 else {"weights"})
        return outcome({"weights"}, searched(frozenset({"weights", "pages"}), lambda kept: needed <= kept), seed)

    monkeypatch.setattr(combinations, "combination", one)
    monkeypatch.setattr(combinations, "ProcessPoolExecutor", _Here)
    yield ran


@pytest.mark.parametrize("count", [1, 5, 6, 13])
def test_each_combination_runs_once(quick: list[int], count: int) -> None:
    sums = list(combinations.combinations(count, 2, seed=40))
    assert sorted(quick) == list(range(40, 40 + count))
    assert sums[-1].combinations == count
    assert [one.combinations for one in sums] == sorted(one.combinations for one in sums)


def test_none_at_all(quick: list[int]) -> None:
    assert list(combinations.combinations(0, 2)) == []
    assert quick == []


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as left:
        main(["prove", "settings", *arguments])
    return int(left.value.code or 0), capsys.readouterr().out


@pytest.mark.usefixtures("quick")
def test_the_command_says_how_many_were_found(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = run(capsys, "6", "--workers", "1")
    assert code == 0
    assert "6 of 6 restoring sets found (6 of 1, 0 of 2, 0 of 3, 0 of 4 settings), 6 of them what was put in" in out
    assert out.strip().endswith("Nothing was wrong.")


@pytest.mark.usefixtures("quick")
def test_below_the_bar_is_exit_code_1_and_names_what_was_missed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = run(capsys, "7", "--workers", "1", "--json")
    found = json.loads(out)
    assert (code, found["combinations"], found["found"], found["exact"]) == (1, 7, 6, 6)
    assert found["missed"] == ["combination 6: weights planted, restored: pages, weights"]


@pytest.mark.usefixtures("quick")
def test_the_bar_is_nineteen_of_twenty(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "ENOUGH", 0.8)
    code, out = run(capsys, "7", "--workers", "1")
    assert code == 0
    assert "6 of 7" in out


@pytest.mark.slow
def test_in_processes(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = run(capsys, "4", "--workers", "2", "--seed", "300", "--json")
    found = json.loads(out)
    assert (code, found["combinations"], found["found"]) == (0, 4, 4)


def test_an_error_of_a_training_is_no_outcome(networks: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise LockstepError("it broke")

    monkeypatch.setattr(combinations, "_install", broken)
    with pytest.raises(LockstepError, match="it broke"):
        trial(networks, 0, frozenset({"weights"}))
