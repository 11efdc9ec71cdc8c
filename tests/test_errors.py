"""The exception tree, the form of a message, and the boundary."""

from __future__ import annotations

import inspect
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep import errors
from lockstep.errors import (
    ConfigError,
    ContractError,
    EngineDied,
    GateRefused,
    InputError,
    Interrupted,
    LockstepError,
    ModelError,
    NumericsError,
    StageError,
    StorageError,
    boundary,
    message,
)

ALL = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, Exception)]


def test_the_form():
    text = message("prompt (3)", "must fit the context", got=900, expected="at most 512 tokens", do="Shorten it")
    assert text == "prompt (3): must fit the context - got 900, expected at most 512 tokens. Shorten it."


@given(st.text(), st.text(), st.text(), st.text(), st.text())
def test_every_part_is_in_it_in_this_order(subject: str, rule: str, got: str, expected: str, do: str):
    text = message(subject, rule, got=got, expected=expected, do=do)
    assert text == f"{subject}: {rule} - got {got}, expected {expected}. {do}."


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_error_is_ours_documented_and_has_an_exit_code(kind: type[LockstepError]):
    assert issubclass(kind, LockstepError)
    assert kind.__doc__
    assert kind.exit_code in (1, 2, 130)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (InputError, 2),
        (ConfigError, 2),
        (ModelError, 2),
        (ContractError, 2),
        (StageError, 2),
        (StorageError, 2),
        (EngineDied, 2),
        (GateRefused, 1),
        (NumericsError, 1),
        (Interrupted, 130),
    ],
)
def test_exit_codes(kind: type[LockstepError], code: int):
    assert kind("x").exit_code == code


def test_what_an_engine_owed_survives_a_pipe():
    died = pickle.loads(pickle.dumps(EngineDied("gone", ("a/0", "b/1"))))
    assert (str(died), died.in_flight) == ("gone", ("a/0", "b/1"))
    assert EngineDied("gone").in_flight == ()


def test_the_standard_families():
    assert issubclass(InputError, ValueError)
    assert issubclass(ConfigError, InputError)
    assert issubclass(ModelError, InputError)
    assert issubclass(ContractError, TypeError)
    assert not issubclass(Interrupted, ValueError)


@pytest.mark.parametrize(
    "raised", [ValueError("bad"), KeyError("k"), MemoryError(), AssertionError("ours"), OSError(2, "gone")]
)
def test_foreign_failures_come_out_with_a_name_and_a_cause(raised: Exception):
    with pytest.raises(StageError) as failure, boundary("reward function (my.f)"):
        raise raised
    assert str(failure.value) == f"reward function (my.f): raised {type(raised).__name__} - {raised}"
    assert failure.value.__cause__ is raised


@pytest.mark.parametrize("raised", [InputError("x"), GateRefused("x"), Interrupted("x"), StageError("inner")])
def test_our_own_errors_pass_unchanged(raised: LockstepError):
    with pytest.raises(type(raised)) as failure, boundary("somebody"):
        raise raised
    assert failure.value is raised


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), GeneratorExit()])
def test_a_stop_passes_unchanged(raised: BaseException):
    with pytest.raises(type(raised)) as failure, boundary("somebody"):
        raise raised
    assert failure.value is raised


def test_nothing_happens_when_nothing_is_raised():
    with boundary("somebody"):
        value = 1
    assert value == 1


def test_the_innermost_name_is_kept():
    with pytest.raises(StageError, match=r"^inner: raised ValueError - x$"), boundary("outer"), boundary("inner"):
        raise ValueError("x")
