"""The nouns: what they refuse, and that unlike logprobs cannot be mixed."""

from __future__ import annotations

import dataclasses
import doctest
import operator
import typing
from dataclasses import FrozenInstanceError, fields, replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep import core
from lockstep.core import (
    Check,
    Contract,
    Decision,
    Logprobs,
    Path,
    Provenance,
    Request,
    Reward,
    Rollout,
    Sampler,
    SamplingParams,
    Scorer,
    Task,
    Verdict,
)
from lockstep.errors import ContractError, InputError, LockstepError
from lockstep.weight_update import WeightVersion

CONTRACT = Contract("processed", 1.0, "full", "float32", (0,))

contracts = st.builds(
    Contract,
    mode=st.sampled_from(["raw", "processed"]),
    temperature=st.sampled_from([0.5, 1.0]),
    support=st.sampled_from(["full", "top_k=20,top_p=1.0,min_p=0.0"]),
    head_dtype=st.sampled_from(["float32", "bfloat16"]),
    weight_versions=st.sampled_from([(0,), (1,), (0, 1)]),
)


def logprobs(*values: float, **change: Any) -> Logprobs:
    return Logprobs(np.array(values, np.float32), replace(CONTRACT, **change))


def test_the_example_in_the_docstring():
    failed, attempted = doctest.testmod(core)
    assert failed == 0
    assert attempted >= 3


NOUNS = [noun for noun in vars(core).values() if dataclasses.is_dataclass(noun) and noun.__module__ == core.__name__]


@pytest.mark.parametrize("noun", NOUNS, ids=lambda noun: noun.__name__)
def test_nouns_are_frozen_and_slotted(noun: Any):
    assert noun.__dataclass_params__.frozen
    assert set(noun.__slots__) == {f.name for f in fields(noun)}
    assert noun.__doc__


def test_nothing_is_changed_after_it_was_made():
    task = Task("t", "p")
    with pytest.raises(FrozenInstanceError):
        task.answer = "1"  # type: ignore[misc]
    assert Task("t", "p").metadata is not task.metadata  # no default is shared


# -- weight versions


def test_versions_are_ordered_by_number():
    first, second = WeightVersion(1, "f" * 64), WeightVersion(2, "0" * 64)
    assert first < second
    assert max(second, first) is second
    assert str(second) == "2@00000000"


def test_a_version_is_number_and_content():
    assert WeightVersion(1, "a" * 64) == WeightVersion(1, "a" * 64) != WeightVersion(1, "b" * 64)
    assert len({WeightVersion(1, "a" * 64), WeightVersion(1, "a" * 64), WeightVersion(1, "b" * 64)}) == 2


@pytest.mark.parametrize(("number", "digest"), [(-1, "a" * 64), (0, ""), (0, "a" * 63), (0, "a" * 65)])
def test_a_version_without_its_digest_does_not_exist(number: int, digest: str):
    with pytest.raises(InputError, match=rf"weight version \({number}\): .* - got '{digest}', expected 64 hex digits"):
        WeightVersion(number, digest)


# -- sampling


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", float("nan")),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("max_tokens", 0),
        ("n", 0),
    ],
)
def test_sampling_out_of_range(name: str, value: float):
    with pytest.raises(
        InputError, match=rf"sampling \({name}\): out of range - got {value}, expected .* Change sampling"
    ):
        SamplingParams(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("params", "greedy", "truncates"),
    [
        (SamplingParams(), False, False),
        (SamplingParams(temperature=0.0), True, False),
        (SamplingParams(temperature=0.0, top_k=5), True, False),
        (SamplingParams(top_k=5), False, True),
        (SamplingParams(top_p=0.9), False, True),
        (SamplingParams(min_p=0.1), False, True),
        (SamplingParams(temperature=0.5), False, False),
    ],
)
def test_greedy_and_truncating(params: SamplingParams, greedy: bool, truncates: bool):
    assert (params.greedy, params.truncates) == (greedy, truncates)


# -- contracts


def test_the_contract_follows_from_how_it_was_drawn():
    assert Contract.of(SamplingParams(), "float32", (3,)) == Contract("processed", 1.0, "full", "float32", (3,))
    assert Contract.of(SamplingParams(temperature=0.0, top_k=9), "float32", (3,)) == Contract(
        "raw", 1.0, "full", "float32", (3,)
    )
    assert Contract.of(SamplingParams(temperature=0.7, top_k=20, top_p=0.9), "bfloat16", (3, 4)) == Contract(
        "processed", 0.7, "top_k=20,top_p=0.9,min_p=0.0", "bfloat16", (3, 4)
    )


def test_an_integer_for_a_fraction_is_the_same_contract():
    """A file keeps fractions as floats: 1 comes back as 1.0."""
    whole, fraction = (SamplingParams(top_k=3, top_p=kind(1), min_p=kind(0)) for kind in (int, float))
    Contract.of(whole, "float32", (3,)).require(Contract.of(fraction, "float32", (3,)))


@given(
    st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.5, 1.0]),
        top_k=st.sampled_from([0, 1, 20]),
        top_p=st.sampled_from([0.5, 1.0]),
        min_p=st.sampled_from([0.0, 0.1]),
    ),
    st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.5, 1.0]),
        top_k=st.sampled_from([0, 1, 20]),
        top_p=st.sampled_from([0.5, 1.0]),
        min_p=st.sampled_from([0.0, 0.1]),
    ),
)
def test_other_distributions_have_other_contracts(a: SamplingParams, b: SamplingParams):
    same = (a.temperature, a.top_k, a.top_p, a.min_p) == (b.temperature, b.top_k, b.top_p, b.min_p)
    assert (Contract.of(a, "float32", (0,)) == Contract.of(b, "float32", (0,))) == same


@given(contracts, contracts)
def test_only_equal_contracts_may_be_compared(a: Contract, b: Contract):
    unlike = [f.name for f in fields(Contract) if getattr(a, f.name) != getattr(b, f.name)]
    if not unlike:
        a.require(b)
        return
    with pytest.raises(ContractError) as failure:
        a.require(b)
    assert str(failure.value).startswith(
        f"logprobs ({', '.join(unlike)}): only logprobs of one contract may be compared"
    )
    assert str(b) in str(failure.value)
    assert f"expected {a}" in str(failure.value)


@given(contracts, contracts)
def test_the_version_may_be_set_aside_and_nothing_else(a: Contract, b: Contract):
    unlike = [f.name for f in fields(Contract) if getattr(a, f.name) != getattr(b, f.name)]
    if set(unlike) <= {"weight_versions"}:
        a.require(b, ignore_version=True)
        return
    with pytest.raises(ContractError) as failure:
        a.require(b, ignore_version=True)
    assert "(" + ", ".join(name for name in unlike if name != "weight_versions") + ")" in str(failure.value)


@given(st.lists(contracts, min_size=3, max_size=3))
def test_require_is_an_equivalence(trio: list[Contract]):
    def agree(a: Contract, b: Contract) -> bool:
        try:
            a.require(b)
        except ContractError:
            return False
        return True

    a, b, c = trio
    assert agree(a, a)
    for x, y in combinations(trio, 2):
        assert agree(x, y) == agree(y, x)
    if agree(a, b) and agree(b, c):
        assert agree(a, c)


# -- logprobs


def test_subtraction_of_like_logprobs():
    difference = logprobs(-1.0, -2.0) - logprobs(-1.5, -2.0)
    assert difference.dtype == np.float32
    assert difference.tolist() == [0.5, 0.0]
    assert len(logprobs(-1.0, -2.0)) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"mode": "raw"},
        {"temperature": 0.7},
        {"support": "top_k=1,top_p=1.0,min_p=0.0"},
        {"head_dtype": "bfloat16"},
        {"weight_versions": (1,)},
    ],
)
def test_subtraction_of_unlike_logprobs_is_a_typed_error(change: dict[str, Any]):
    for left, right in ((logprobs(-1.0), logprobs(-1.0, **change)), (logprobs(-1.0, **change), logprobs(-1.0))):
        with pytest.raises(ContractError) as failure:
            left - right
        assert isinstance(failure.value, TypeError)
        assert isinstance(failure.value, LockstepError)
        assert f"({next(iter(change))})" in str(failure.value)


def test_mismatch_and_update_are_taken_apart():
    """log r = (trainer at the sampling version - sampler) + (trainer now - trainer at the sampling version)."""
    sampler, then, now = logprobs(-1.0), logprobs(-1.25), logprobs(-2.0, weight_versions=(1,))
    assert (then - sampler).tolist() == [-0.25]
    assert now.update_since(then).tolist() == [-0.75]
    with pytest.raises(ContractError, match="weight_versions"):
        now - sampler
    with pytest.raises(ContractError, match=r"\(temperature\)"):
        now.update_since(logprobs(-1.0, temperature=0.5))


@pytest.mark.parametrize("operation", [operator.add, operator.mul, operator.truediv, operator.lt])
def test_no_other_arithmetic_slips_past_the_contract(operation: Any):
    with pytest.raises(TypeError):
        operation(logprobs(-1.0), logprobs(-1.0, mode="raw"))


def test_bare_numbers_are_not_logprobs():
    with pytest.raises((TypeError, AttributeError)):
        logprobs(-1.0) - np.array([-1.0], np.float32)  # type: ignore[operator]


# -- the rest


def test_only_admit_admits():
    assert Decision("admit", "p", "r").admitted
    assert not Decision("hold", "p", "r").admitted
    assert not Decision("reject", "p", "r").admitted
    assert not Decision("ADMIT", "p", "r").admitted  # type: ignore[arg-type]


def test_undecided_has_a_value_of_its_own():
    assert Reward("r", None).value is None
    assert typing.get_args(typing.get_type_hints(Verdict)["status"]) == ("pass", "fail", "abstain", "error")


def test_paths_are_stored_as_numbers():
    """Rollout files hold them: a number, once given, keeps its meaning."""
    assert {path.name: int(path) for path in Path} == {"PREFILL": 0, "CHUNK": 1, "DECODE": 2, "RECOMPUTE": 3}


def test_provenance_counts_tokens():
    assert len(Provenance(np.zeros(3, np.int32), np.zeros(3, np.uint8), np.zeros(3, bool))) == 3


def test_protocols_are_recognised_by_their_method():
    class Plays:
        def sample(self, requests: list[Request]) -> list[Rollout]:
            return []

        def score(self, rollouts: list[Rollout]) -> list[Logprobs]:
            return []

        def check(self, task: Task, text: str) -> Verdict:
            return Verdict("abstain", "c", "n@1")

    for protocol in (Sampler, Scorer, Check):
        assert isinstance(Plays(), protocol)
        assert not isinstance(object(), protocol)
