"""The gate admits exactly one thing, and says why it refused everything else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.config import ParityConfig
from lockstep.core import Decision
from lockstep.errors import ContractError, Interrupted
from lockstep.gates import ParityGate
from lockstep.parity import FirstDifference, ParityResult

GATE = ParityGate(ParityConfig())
MEASURE = ParityGate(ParityConfig(gate=False))

EQUAL = ParityResult("equal", 8, 0, 0.0, 0.0, 0.0)
FIRST = FirstDifference("r0", 2, 17, 7, -1.0, -1.5, "0xbf800000", "0xbfc00000", 3, "decode", False)
DIFFERS = ParityResult("differs", 8, 1, 0.5, 0.5, 0.0625, FIRST, "logprob (rollout r0, token 2): they differ")


@dataclass
class Evidence:
    """Anything at all in the place of a `ParityResult`."""

    status: Any = "equal"
    num_tokens: Any = 8
    num_differing: Any = 0
    max: Any = 0.0
    text: str = "found"
    kept: Any = field(default_factory=dict)

    def evidence(self) -> Mapping[str, Any]:
        return self.kept

    def __str__(self) -> str:
        return self.text


def test_parity_is_admitted():
    decision = GATE.decide("proposal-3", EQUAL)
    assert decision == Decision("admit", "proposal-3", "8 tokens compared, every bit equal", dict(EQUAL.evidence()))
    assert decision.admitted


def test_one_difference_is_rejected_and_named():
    decision = GATE.decide("p", DIFFERS)
    assert (decision.outcome, decision.subject, decision.admitted) == ("reject", "p", False)
    assert decision.reason == "logprob (rollout r0, token 2): they differ"
    assert decision.evidence["first"]["token_id"] == 17
    assert decision.evidence["num_differing"] == 1


def test_signed_zeros_are_a_difference():
    assert not GATE.decide("p", replace(DIFFERS, max=0.0, p99=0.0, mean=0.0)).admitted


@pytest.mark.parametrize("status", ["empty", "missing", "misaligned", "not_finite"])
def test_what_could_not_be_compared_is_rejected(status: Any):
    decision = GATE.decide("p", ParityResult.refused(status, "logprobs (batch): why"))
    assert (decision.outcome, decision.reason) == ("reject", "logprobs (batch): why")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"status": "fine"}, "found"),
        ({"status": "EQUAL"}, "found"),
        ({"status": ""}, "found"),
        ({"status": None}, "found"),
        ({"status": True}, "found"),
        ({"status": "differs", "text": ""}, "status differs"),
        ({"num_tokens": 0}, "no tokens were compared (0)"),
        ({"num_tokens": -1}, "no tokens were compared (-1)"),
        ({"num_tokens": math.nan}, "no tokens were compared (nan)"),
        ({"num_tokens": None}, "no tokens were compared (None)"),
        ({"num_tokens": True}, "no tokens were compared (True)"),
        ({"num_tokens": "8"}, "no tokens were compared (8)"),
        ({"num_differing": 1}, "1 tokens differ"),
        ({"num_differing": -1}, "-1 tokens differ"),
        ({"num_differing": math.nan}, "nan tokens differ"),
        ({"num_differing": None}, "None tokens differ"),
        ({"num_differing": False}, "False tokens differ"),
        ({"max": 1e-45}, "logprobs differ by up to 1e-45"),
        ({"max": math.nan}, "logprobs differ by up to nan"),
        ({"max": None}, "logprobs differ by up to None"),
        ({"max": "0.0"}, "logprobs differ by up to 0.0"),
    ],
)
def test_everything_else_is_rejected(change: dict[str, Any], reason: str):
    assert GATE.decide("p", Evidence()).admitted
    decision = GATE.decide("p", Evidence(**change))
    assert (decision.outcome, decision.reason) == ("reject", reason)


anything = st.none() | st.booleans() | st.integers(-2, 9) | st.floats() | st.text(max_size=3) | st.just("equal")


@given(anything, anything, anything, anything)
def test_only_the_one_case_passes(status: Any, num_tokens: Any, num_differing: Any, distance: Any):
    decision = GATE.decide("p", Evidence(status, num_tokens, num_differing, distance))
    good = (
        (type(status), type(num_tokens), type(num_differing), type(distance)) == (str, int, int, float)
        and (status, num_differing, distance) == ("equal", 0, 0.0)
        and num_tokens > 0
    )
    assert decision.admitted == good


@pytest.mark.parametrize("broken", [None, object(), Evidence(kept=None), Evidence(kept=7), 3])
def test_evidence_that_cannot_be_read_is_rejected(broken: Any):
    decision = GATE.decide("p", broken)
    assert decision.outcome == "reject"
    assert decision.evidence["error"] in ("AttributeError", "TypeError")
    assert decision.reason.startswith("parity gate: raised ")


class Hostile(Evidence):
    def __str__(self) -> str:
        raise ZeroDivisionError("by zero")


def test_evidence_that_cannot_be_said_is_rejected():
    decision = GATE.decide("p", Hostile(kept={"num_tokens": 8}))
    assert decision.outcome == "reject"
    assert decision.evidence == {
        "num_tokens": 8,
        "error": "ZeroDivisionError",
        "finding": "parity gate: raised ZeroDivisionError - by zero",
    }


@pytest.mark.parametrize("raised", [ContractError("logprobs (mode): unlike"), ValueError("shapes"), MemoryError()])
def test_a_comparison_that_raises_is_rejected(raised: Exception):
    def measure() -> ParityResult:
        raise raised

    decision = GATE.ask("p", measure)
    assert (decision.outcome, decision.subject) == ("reject", "p")
    assert decision.evidence["error"] == type(raised).__name__
    assert str(raised) in decision.reason
    assert MEASURE.ask("p", measure).admitted


@pytest.mark.parametrize("stop", [Interrupted("stop"), KeyboardInterrupt()])
@pytest.mark.parametrize("gate", [GATE, MEASURE])
def test_a_stop_is_a_stop(gate: ParityGate, stop: BaseException):
    def measure() -> ParityResult:
        raise stop

    with pytest.raises(type(stop)):
        gate.ask("p", measure)


def test_all_tokens_of_the_step_must_have_been_compared():
    assert GATE.decide("p", EQUAL, num_tokens=8).admitted
    decision = GATE.decide("p", EQUAL, num_tokens=9)
    assert (decision.outcome, decision.reason) == ("reject", "8 tokens were compared, but the step trains on 9")
    assert not GATE.decide("p", EQUAL, num_tokens=0).admitted


def test_a_decision_is_about_one_proposal():
    assert GATE.decide("a", EQUAL).subject == "a"
    assert GATE.decide("b", EQUAL).subject == "b"
    assert GATE.decide("", EQUAL).outcome == "reject"


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (EQUAL, "not gated: parity holds"),
        (DIFFERS, "not gated: logprob (rollout r0, token 2): they differ"),
        (ParityResult.refused("empty", "logprobs (batch): none"), "not gated: logprobs (batch): none"),
    ],
)
def test_switched_off_it_measures_and_says_so(found: ParityResult, reason: str):
    decision = MEASURE.decide("p", found)
    assert (decision.outcome, decision.reason) == ("admit", reason)
    assert decision.evidence["status"] == found.status


@pytest.mark.parametrize("value", [None, 0, "", math.nan])
def test_only_false_itself_switches_it_off(value: Any):
    @dataclass
    class Settings:
        gate: Any

    assert ParityGate(Settings(value)).decide("p", DIFFERS).outcome == "reject"
    assert ParityGate(Settings(False)).decide("p", DIFFERS).outcome == "admit"
