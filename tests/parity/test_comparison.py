"""The comparison: bits and nothing but bits, and every way in which there is nothing to compare."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lockstep.core import Contract, Logprobs, Path, Provenance, Rollout, SamplingParams
from lockstep.errors import ContractError
from lockstep.parity import ParityResult, compare

CONTRACT = Contract("processed", 0.7, "full", "float32", (3,))
finite = st.floats(-50, 0, width=32)
series = hnp.arrays(np.float32, st.integers(1, 20), elements=finite)
batches = st.lists(series, min_size=1, max_size=5)


def rollout(values: np.ndarray | list[float], name: str = "r0", **change: object) -> Rollout:
    """Token ids 100, 101, ... after a prompt of 5; the first token by prefill, the others by decode."""
    ours = np.asarray(values, np.float32)
    count = len(ours)
    path = np.full(count, Path.DECODE, np.uint8)
    path[:1] = Path.PREFILL
    base = Rollout(
        id=name,
        task_id="t",
        prompt_ids=np.arange(5, dtype=np.int32),
        token_ids=np.arange(100, 100 + count, dtype=np.int32),
        text="",
        finish_reason="stop",
        params=SamplingParams(temperature=0.7),
        sampler_logprobs=Logprobs(ours, CONTRACT),
        provenance=Provenance(np.full(count, 3, np.int32), path, np.zeros(count, bool)),
    )
    return replace(base, **change)  # type: ignore[arg-type]


def theirs(values: np.ndarray | list[float], **change: object) -> Logprobs:
    return Logprobs(np.asarray(values, np.float32), replace(CONTRACT, **change))  # type: ignore[arg-type]


def of(*pairs: tuple[list[float] | np.ndarray, list[float] | np.ndarray]) -> ParityResult:
    rollouts = [rollout(ours, f"r{i}") for i, (ours, _) in enumerate(pairs)]
    return compare(rollouts, [theirs(values) for _, values in pairs])


def nudged(values: np.ndarray, index: int, bit: int = 0) -> np.ndarray:
    changed = values.copy()
    changed.view(np.uint32)[index] ^= np.uint32(1 << bit)
    return changed


# -- what is compared


@given(batches)
def test_equal_bits_are_parity(values: list[np.ndarray]):
    result = of(*((v, v.copy()) for v in values))
    total = sum(map(len, values))
    assert result == ParityResult("equal", total, 0, 0.0, 0.0, 0.0)
    assert str(result) == f"{total} tokens compared, every bit equal"
    assert result.metrics() == {
        "parity/max": 0.0,
        "parity/p99": 0.0,
        "parity/mean": 0.0,
        "parity/frac_differing": 0.0,
        "parity/num_tokens": float(total),
    }


@given(batches, st.data())
def test_one_flipped_bit_is_found_wherever_it_is(values: list[np.ndarray], data: st.DataObject):
    which = data.draw(st.integers(0, len(values) - 1))
    index = data.draw(st.integers(0, len(values[which]) - 1))
    bit = data.draw(st.integers(0, 22) | st.just(31))  # the mantissa, or the sign
    changed = [nudged(v, index, bit) if i == which else v for i, v in enumerate(values)]
    result = of(*zip(values, changed, strict=True))
    assert (result.status, result.num_differing, result.num_tokens) == ("differs", 1, sum(map(len, values)))
    assert result.first is not None
    first = result.first
    assert (first.rollout_id, first.index, first.token_id, first.position) == (
        f"r{which}",
        index,
        100 + index,
        5 + index,
    )
    assert int(first.sampler_bits, 16) ^ int(first.trainer_bits, 16) == 1 << bit
    assert np.float32(first.sampler) == values[which][index]
    distance = abs(float(changed[which][index]) - float(values[which][index]))
    assert result.max == distance
    assert result.mean == pytest.approx(distance / result.num_tokens)


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=50))
def test_figures_agree_with_their_definitions(pairs: list[tuple[float, float]]):
    ours, trainers = (np.array(side, np.float32) for side in zip(*pairs, strict=True))
    result = of((ours, trainers))
    distance = sorted(abs(float(a) - float(b)) for a, b in zip(ours, trainers, strict=True))
    assert result.num_differing == sum(a.tobytes() != b.tobytes() for a, b in zip(ours, trainers, strict=True))
    assert result.max == distance[-1]
    assert result.p99 == distance[math.ceil(0.99 * len(distance)) - 1]
    assert result.mean == pytest.approx(sum(distance) / len(distance), abs=1e-12)
    assert result.metrics()["parity/frac_differing"] == result.num_differing / len(pairs)
    if result.first is not None:
        assert ours[: result.first.index].tobytes() == trainers[: result.first.index].tobytes()


def test_signed_zeros_differ_in_bits_by_no_distance():
    result = of(([-1.0, 0.0], [-1.0, -0.0]))
    assert (result.status, result.num_differing, result.max) == ("differs", 1, 0.0)
    assert result.first is not None
    assert (result.first.sampler_bits, result.first.trainer_bits) == ("0x00000000", "0x80000000")


def test_differences_too_small_for_float32_arithmetic_are_seen():
    tiny = float(np.float32(1e-45))
    result = of(([0.0], [-tiny]))
    assert (result.num_differing, result.max) == (1, tiny)


def test_the_message_says_everything():
    value = np.float32(-1.5)
    result = of(([-1.0, -1.0, value, value], [-1.0, -1.0, np.nextafter(value, np.float32(0)), -2.0]))
    assert result.finding == (
        "logprob (rollout r0, token 2): trainer and engine must agree in every bit (2 of 4 tokens differ) - "
        "got -1.4999998807907104 (0xbfbfffff) from the trainer, expected -1.5 (0xbfc00000) from the engine. "
        "Look at token id 102 at position 7, weight version 3, path decode."
    )
    assert str(result) == result.finding


@pytest.mark.parametrize(
    ("path", "cached", "says"),
    [
        (Path.CHUNK, False, "path chunk."),
        (Path.RECOMPUTE, True, "path recompute, cached prompt."),
        (9, False, "path unknown (9)."),
    ],
)
def test_the_path_is_named(path: int, cached: bool, says: str):
    origin = Provenance(np.array([3], np.int32), np.array([path], np.uint8), np.array([cached]))
    result = compare([rollout([-1.0], provenance=origin)], [theirs([-2.0])])
    assert result.finding.endswith(says)


def test_first_follows_the_order_of_the_rollouts():
    a, b, c = [-1.0, -2.0], [-3.0, -4.0], [-5.0, -6.0]
    result = of((a, a), (b, [-3.0, -4.5]), (c, [-9.0, -6.0]))
    assert result.first is not None
    assert (result.first.rollout_id, result.first.index) == ("r1", 1)


def test_evidence_is_plain():
    evidence = of(([-1.0], [-2.0])).evidence()
    assert json.loads(json.dumps(evidence))["first"]["trainer"] == -2.0
    assert evidence["status"] == "differs"


def test_rollouts_without_tokens_are_no_obstacle_to_the_others():
    result = of(([], []), ([-1.0], [-1.0]), ([], []))
    assert (result.status, result.num_tokens) == ("equal", 1)
    aborted = rollout([], sampler_logprobs=theirs([], weight_versions=()))  # no token, no version
    assert compare([aborted, rollout([-1.0])], [theirs([]), theirs([-1.0])]).status == "equal"


# -- what cannot be compared


@pytest.mark.parametrize(
    "change",
    [
        {"mode": "raw"},
        {"temperature": 1.0},
        {"support": "top_k=20,top_p=1.0,min_p=0.0"},
        {"head_dtype": "bfloat16"},
        {"weight_versions": (2,)},
        {"weight_versions": (3, 4)},
    ],
)
def test_unlike_contracts_are_not_compared(change: dict[str, object]):
    with pytest.raises(ContractError, match=f"logprobs \\({next(iter(change))}\\): only logprobs of one contract"):
        compare([rollout([-1.0]), rollout([-1.0])], [theirs([-1.0]), theirs([-1.0], **change)])


def refused(result: ParityResult, status: str, says: str) -> None:
    assert (result.status, result.num_tokens, result.num_differing) == (status, 0, 0)
    assert all(math.isnan(value) for value in (result.max, result.p99, result.mean))
    assert math.isnan(result.metrics()["parity/frac_differing"])
    assert result.metrics()["parity/num_tokens"] == 0.0
    assert says in result.finding
    assert ", expected " in result.finding


def test_no_tokens():
    refused(compare([], []), "empty", "got 0 tokens, expected at least one token")
    refused(of(([], []), ([], [])), "empty", "got 0 tokens")


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_series_too_few_or_too_many(count: int):
    result = compare([rollout([-1.0]), rollout([-1.0])], [theirs([-1.0])] * count)
    refused(result, "missing", f"got {count} from the trainer, expected 2 series")


def test_missing_logprobs():
    good = theirs([-1.0, -2.0])
    refused(compare([rollout([-1.0, -2.0], "a")], [None]), "missing", "logprobs (rollout a): ")
    refused(of(([-1.0, -2.0], [])), "missing", "got 0 logprobs from the trainer, expected 2")
    empty = rollout([-1.0, -2.0], sampler_logprobs=theirs([]))
    refused(compare([empty], [good]), "missing", "got 0 logprobs from the engine, expected 2")


@pytest.mark.parametrize("count", [1, 2, 4])
def test_misaligned_logprobs(count: int):
    values = np.full(3, -1.0, np.float32)
    other = np.full(count, -1.0, np.float32)
    refused(of((values, other)), "misaligned", f"got {count} logprobs from the trainer, expected 3")
    ours = rollout(values, sampler_logprobs=theirs(other))
    refused(compare([ours], [theirs(values)]), "misaligned", f"got {count} logprobs from the engine, expected 3")
    refused(compare([ours], [theirs(other)]), "misaligned", "from the engine")  # both sides off, alike


def test_misaligned_provenance():
    origin = rollout([-1.0]).provenance
    short = rollout([-1.0, -1.0], provenance=origin)
    refused(compare([short], [theirs([-1.0, -1.0])]), "misaligned", "got the provenance of 1 tokens, expected 2")
    ragged = replace(origin, path=np.zeros(2, np.uint8))
    refused(compare([rollout([-1.0], provenance=ragged)], [theirs([-1.0])]), "misaligned", "the provenance of")


def test_tokens_of_another_version_than_the_contract_says():
    origin = replace(rollout([-1.0, -1.0]).provenance, weight_version=np.array([3, 2], np.int32))
    result = compare([rollout([-1.0, -1.0], provenance=origin)], [theirs([-1.0, -1.0])])
    refused(result, "misaligned", "got tokens of weight versions [2, 3], expected [3]")


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32])
def test_other_types_are_not_cast(dtype: type):
    values = np.array([-1, -2], dtype)
    result = compare([rollout([-1.0, -2.0])], [Logprobs(values, CONTRACT)])
    refused(result, "misaligned", f"logprobs from the trainer as {np.dtype(dtype)} of 1 dimensions, expected float32")
    result = compare([rollout([-1.0])], [Logprobs(np.array([[-1.0]], np.float32), CONTRACT)])
    refused(result, "misaligned", "as float32 of 2 dimensions")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["engine", "trainer", "both"])
def test_what_is_not_finite_is_refused_even_if_equal(bad: float, side: str):
    good = [-1.0, -2.0, -3.0]
    spoilt = [-1.0, bad, -3.0]
    result = of((good, good), (good if side == "trainer" else spoilt, good if side == "engine" else spoilt))
    refused(result, "not_finite", "logprob (rollout r1, token 1): a logprob of a token that was drawn is finite - got ")
    assert result.first is not None
    assert (result.first.index, result.first.path) == (1, "decode")
    assert "Look at token id 101 at position 6, weight version 3, path decode." in result.finding


def test_a_missing_series_is_reported_before_a_difference():
    refused(compare([rollout([-1.0], "a"), rollout([-1.0], "b")], [theirs([-2.0]), None]), "missing", "rollout b")


# -- what the bits show about the cause


def spread(count: int, start: int = 1) -> np.ndarray:
    return -np.sqrt(np.arange(start, start + count, dtype=np.float32))


def hints_of(*pairs: tuple[np.ndarray, np.ndarray]) -> tuple[str, ...]:
    return of(*pairs).hints


def test_hint_shifted():
    values = spread(8)
    earlier, later = np.roll(values, 1), np.roll(values, -1)
    assert hints_of((values, earlier)) == (
        "rollout r0 agrees when the trainer's series is moved one token earlier (DAT01)",
    )
    assert hints_of((values, later)) == (
        "rollout r0 agrees when the trainer's series is moved one token later (DAT01)",
    )
    assert str(of((values, later))).endswith("path prefill. Hint: " + hints_of((values, later))[0] + ".")


def test_hint_swapped():
    a, b = spread(6), spread(6, start=20)
    assert hints_of((a, b), (b, a)) == ("the trainer's values of rollout r0 are the engine's of rollout r1 (DAT04)",)


def test_hint_zeros():
    a = spread(6)
    filled = a.copy()
    filled[1:] = 0.0
    assert "every differing value of the trainer is 0.0" in hints_of((a, filled))[0]
    assert "every differing value of the engine is 0.0" in hints_of((filled, a))[0]


def test_hint_one_path():
    origin = rollout(spread(12)).provenance
    path = np.full(12, Path.PREFILL, np.uint8)
    path[5:8] = Path.DECODE
    ours = rollout(spread(12), provenance=replace(origin, path=path))
    changed = nudged(nudged(spread(12), 5), 7)
    assert compare([ours], [theirs(changed)]).hints == (
        "only tokens of path decode differ; all 9 of other paths agree",
    )
    assert compare([ours], [theirs(nudged(changed, 0))]).hints == ()


def test_no_hint_without_evidence():
    values = spread(8)
    assert hints_of((values, nudged(values, 3))) == ()
    assert hints_of((values, values * np.float32(1.01))) == ()
    constant = np.full(8, -1.0, np.float32)
    assert hints_of((constant, nudged(constant, 7))) == ()  # constant but for the end: any shift would fit
    short = spread(3)
    assert hints_of((short, np.roll(short, 1))) == ()


@given(st.lists(st.tuples(series, st.integers(0, 2)), min_size=1, max_size=4), st.data())
def test_hints_are_only_given_for_differences_and_never_fail(drawn: list[tuple[np.ndarray, int]], data: st.DataObject):
    pairs = [(v, data.draw(hnp.arrays(np.float32, len(v), elements=finite)) if kind else v) for v, kind in drawn]
    result = of(*pairs)
    if result.status == "equal":
        assert result.hints == ()
    assert all(isinstance(hint, str) and hint for hint in result.hints)
