"""Runs of the scoreboard: a fault is named when it acts, a clean run is left in peace, every run is counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from lockstep.core import SamplingParams
from lockstep.harness import scoreboard
from lockstep.harness.faults import INJECTIONS
from lockstep.harness.injection import Injection
from lockstep.harness.laboratory import Laboratory
from lockstep.harness.scoreboard import CLEAN_STEPS, PATIENCE, Case, auditor_of, cases, run
from lockstep.harness.setup import Setup
from lockstep.parity.auditor import Auditor
from lockstep.parity.catalogue import CATALOGUE
from lockstep.parity.evidence import Finding
from lockstep.parity.fault import Layer
from lockstep.parity.floor import Floor
from lockstep.parity.observation import Observation

SMALL: Mapping[str, Any] = {
    "exact": True,
    "dtype": "float32",
    "family": "llama",
    "prompts": 3,
    "prefix": 34,
    "tail": 6,
    "params": SamplingParams(temperature=0.7, max_tokens=6, n=2, ignore_eos=True),
}
NEEDS_MORE = {"WGT03", "CAC05"}
"""Faults of single rows or pages, which so small a training shows too little of."""
ONE_A_LAYER = ("SEM01", "DAT06", "WGT06", "CAC01", "PTH01", "NUM04", "OBJ05")


def small(code: str) -> Injection:
    """The injection in the smallest training."""
    return replace(INJECTIONS[code], setup={**SMALL, **INJECTIONS[code].setup})


def seed_that_is(exact: bool) -> int:
    return next(seed for seed in range(100) if Setup.random(seed).exact == exact)


@pytest.mark.parametrize("code", ONE_A_LAYER)
def test_a_fault_is_named_at_the_first_step_on_which_it_acts(networks, code: str) -> None:
    case = run(networks, 1, small(code))
    assert case.found is not None and case.found.code == code, case.found
    assert (case.code, case.seed, case.exact, case.false_alarm) == (code, 1, True, False)
    assert (case.delay, case.steps) == (0, INJECTIONS[code].onset)
    assert case.right_cause and case.right_layer
    assert case.seconds > 0


def test_every_layer_has_a_fault_that_is_tried_here() -> None:
    assert {Layer.of(code) for code in ONE_A_LAYER} == set(Layer)


def test_a_clean_run_is_watched_to_its_end_and_nothing_is_named(networks) -> None:
    case = run(networks, seed_that_is(True))
    assert (case.code, case.found, case.delay, case.false_alarm) == (None, None, None, False)
    assert case.steps == CLEAN_STEPS
    assert not (case.seen or case.right_cause or case.right_layer)


@pytest.mark.parametrize("onset", [2, 3])
def test_a_fault_that_does_nothing_is_never_seen_however_long_it_is_waited_for(networks, onset: int) -> None:
    case = run(networks, 1, Injection("WGT01", lambda _: None, SMALL, onset))
    assert (case.found, case.delay, case.seen) == (None, None, False)
    assert case.steps == onset + PATIENCE - 1


def test_a_fault_is_put_in_before_the_update_that_it_spoils(networks) -> None:
    at: list[tuple[int, int]] = []

    def note(laboratory: Laboratory) -> None:
        at.append((laboratory.step, laboratory.trainer.version.number))

    run(networks, 1, Injection("WGT01", note, SMALL, 3))
    assert at == [(2, 1)], "once, after step 2 was observed and before the trainer took it"


@pytest.mark.parametrize("code", [None, "WGT01"])
def test_what_is_said_before_a_fault_or_without_one_is_a_false_alarm(networks, monkeypatch, code: str | None) -> None:
    monkeypatch.setattr(scoreboard, "auditor_of", lambda _: Auditor(floor=Floor.exact()))
    noisy = {**SMALL, "exact": False, "dtype": "bfloat16"}
    injection = None if code is None else Injection(code, lambda _: None, noisy)
    case = run(networks, seed_that_is(False), injection)
    assert case.found is not None and case.false_alarm
    assert (case.steps, case.delay, case.exact) == (1, 0 if code is None else -1, False)
    assert not case.seen


def test_an_exact_pair_has_no_floor_to_measure_and_the_other_a_measured_one(networks, opened) -> None:
    with opened() as lab:
        auditor = auditor_of(lab)
        assert auditor.floor is not None and auditor.floor.is_exact
    with opened(exact=False, dtype="bfloat16") as lab:
        auditor = auditor_of(lab)
        assert auditor.floor is not None and not auditor.floor.is_exact
        assert auditor.look(lab.observe()).status == "parity"


def test_measuring_the_floor_does_not_change_what_the_run_draws(opened) -> None:
    seen = []
    for measured in (False, True):
        with opened(exact=False, dtype="bfloat16") as lab:
            if measured:
                auditor_of(lab)
            seen.append([(s.token_ids.tobytes(), s.sampler.tobytes()) for s in lab.observe().samples])
    assert seen[0] == seen[1]


def test_cases_are_every_fault_with_every_seed_and_then_the_clean_ones(networks, monkeypatch) -> None:
    monkeypatch.setattr(scoreboard, "run", lambda _, seed, injection=None: (injection and injection.code, seed))
    found = list(cases(networks, ["WGT01", "CAC01"], range(2), range(5, 8)))
    faulty = [("WGT01", 0), ("WGT01", 1), ("CAC01", 0), ("CAC01", 1)]
    assert found == [*faulty, (None, 5), (None, 6), (None, 7)]


def test_cases_run_one_at_a_time_as_they_are_asked_for(networks, monkeypatch) -> None:
    ran: list[int] = []
    monkeypatch.setattr(scoreboard, "run", lambda _, seed, injection=None: ran.append(seed))
    running = cases(networks, ["WGT01"], range(3), range(0))
    next(running)
    assert ran == [0]


# -- the rules beside it


@pytest.fixture
def watched(monkeypatch) -> tuple[list[int], list[int]]:
    """Which steps the auditor and the rules were asked about."""
    audited: list[int] = []
    ruled: list[int] = []
    look = Auditor.look

    def asked(auditor: Auditor, observation: Observation) -> Finding:
        audited.append(observation.step)
        return look(auditor, observation)

    monkeypatch.setattr(Auditor, "look", asked)
    monkeypatch.setattr(scoreboard, "flagged", lambda seen: ruled.append(seen.step) or ["a rule"] * (seen.step > 1))
    return audited, ruled


def test_rules_and_auditor_are_asked_about_the_same_observations(networks, monkeypatch) -> None:
    audited: list[Observation] = []
    ruled: list[Observation] = []
    look = Auditor.look
    monkeypatch.setattr(Auditor, "look", lambda auditor, seen: audited.append(seen) or look(auditor, seen))
    monkeypatch.setattr(scoreboard, "flagged", lambda seen: ruled.append(seen) or [])
    run(networks, seed_that_is(True))
    assert len(ruled) == CLEAN_STEPS and all(a is b for a, b in zip(audited, ruled, strict=True))


def test_a_run_with_a_hard_fault_ends_at_its_onset_once_the_auditor_has_spoken(networks, watched) -> None:
    case = run(networks, 1, small("SEM01"))
    onset = INJECTIONS["SEM01"].onset
    assert watched == (list(range(1, onset + 1)),) * 2
    assert (case.steps, dict(case.flags)) == (onset, {"a rule": tuple(range(2 - onset, 1))})


def test_rules_have_their_patience_with_a_soft_fault_though_the_auditor_has_spoken(networks, watched) -> None:
    assert not CATALOGUE["NUM04"].hard
    case = run(networks, 1, small("NUM04"))
    audited, ruled = watched
    onset = INJECTIONS["NUM04"].onset
    assert case.found is not None and case.delay == 0
    assert audited[-1] == case.steps == onset, "it is not asked again"
    assert ruled == list(range(1, onset + PATIENCE))
    assert case.flags["a rule"][-1] == PATIENCE - 1


def test_a_false_alarm_of_the_auditor_does_not_end_a_clean_run_for_the_rules(networks, monkeypatch, watched) -> None:
    monkeypatch.setattr(scoreboard, "auditor_of", lambda _: Auditor(floor=Floor.exact()))
    case = run(networks, seed_that_is(False))
    assert case.false_alarm and watched == ([1], list(range(1, CLEAN_STEPS + 1)))
    assert case.steps == 1
    assert case.flags == {"a rule": tuple(range(1, CLEAN_STEPS))} and case.flagged_falsely("a rule")


def test_a_fault_in_the_meaning_of_logprobs_is_seen_by_rules_and_a_clean_exact_run_by_none(networks) -> None:
    assert "NeMo-RL" in run(networks, 1, small("SEM01")).flags
    assert run(networks, seed_that_is(True)).flags == {}


@pytest.mark.parametrize(
    ("steps", "delay", "falsely"),
    [((), None, False), ((0,), 0, False), ((2, 3), 2, False), ((-1,), None, True), ((-1, 0), None, True)],
)
def test_a_flag_before_the_fault_is_false_and_spoils_those_after_it(steps, delay, falsely: bool) -> None:
    case = Case("WGT01", 0, None, None, True, flags={"a rule": steps})
    assert (case.flag_delay("a rule"), case.flagged_falsely("a rule")) == (delay, falsely)
    assert (case.flag_delay("another"), case.flagged_falsely("another")) == (None, False)


def test_every_flag_in_a_clean_run_is_false() -> None:
    case = Case(None, 0, None, None, True, flags={"a rule": (0,)})
    assert case.flag_delay("a rule") is None and case.flagged_falsely("a rule")


@pytest.mark.slow
@pytest.mark.parametrize("code", INJECTIONS)
def test_every_fault_of_the_catalogue_is_named(networks, code: str) -> None:
    case = run(networks, 1, INJECTIONS[code] if code in NEEDS_MORE else small(code))
    assert case.right_cause, case.found
