"""The numbers everything rests on: the random-number rule against an oracle, and rows that do not see one another."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lockstep.numerics import k3, log_softmax, processed_logits, request_key, uniform, uniforms

positions = st.integers(0, 2**32)
seeds = st.integers(0, 2**64 - 1)
MASK = 2**64 - 1


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox-4x64-10 by the paper (Salmon et al., 2011), in plain integers."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        low, high = a * 0xD2E7470EE14C6C93, c * 0xCA5A826395121157
        a, b, c, d = (high >> 64) ^ b ^ k0, high & MASK, (low >> 64) ^ d ^ k1, low & MASK
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return a, b, c, d


@pytest.fixture
def threads() -> Iterator[None]:
    """Gives back the number of threads that a test found."""
    found = torch.get_num_threads()
    yield
    torch.set_num_threads(found)


# -- random numbers


def test_the_oracle_is_right():
    """Known answers of the Random123 distribution."""
    assert philox((0, 0, 0, 0), (0, 0)) == (
        0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B,
    )  # fmt: skip
    assert philox((MASK,) * 4, (MASK,) * 2) == (
        0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0,
    )  # fmt: skip


@given(seeds, seeds, positions)
def test_uniform_is_philox(low: int, high: int, position: int):
    """The rule for any other implementation: counter position + 1, first word, upper 24 bits."""
    key = np.array([low, high], np.uint64)
    word = philox((position + 1, 0, 0, 0), (low, high))[0]
    assert uniform(key, position) == (word >> 40) / 2**24


def test_golden():
    """Samples of a seed are the same for ever, on every machine."""
    key = request_key(0, "1/0", 0)
    assert key.tolist() == [16716110361738087974, 2913507263296673984]
    assert [uniform(key, position) for position in range(4)] == [
        0.4852041006088257, 0.3077220320701599, 0.29550623893737793, 0.003672659397125244,
    ]  # fmt: skip
    assert request_key(7, "é", 3).tolist() == [12604924733524054337, 7477661678677352016]


@given(seeds, st.text(), st.integers(0, 100), positions)
def test_range_and_precision(seed: int, request: str, sample: int, position: int):
    value = uniform(request_key(seed, request, sample), position)
    assert 0.0 <= value < 1.0
    assert float(np.float32(value)) == value  # every device can hold it
    assert value == uniform(request_key(seed, request, sample), position)


words = st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1])


@given(st.lists(st.tuples(words, words, positions | st.just(2**32 - 1)), max_size=40))
def test_many_uniforms_at_once_are_those_of_numpys_philox(rows: list[tuple[int, int, int]]):
    keys = np.array([row[:2] for row in rows], np.uint64).reshape(-1, 2)
    found = uniforms(keys, np.array([row[2] for row in rows], np.int64))
    assert found.dtype == np.float64
    assert found.tolist() == [uniform(key, row[2]) for key, row in zip(keys, rows, strict=True)]


def test_a_hundred_thousand_uniforms_at_once():
    keys = np.random.Generator(np.random.Philox(0)).integers(0, 2**64, (100_000, 2), np.uint64)
    found = uniforms(keys, np.arange(len(keys)))
    assert len(np.unique(found)) > 99_000
    assert all(found[i] == uniform(keys[i], i) for i in range(0, len(keys), 97))


def test_uniform():
    draws = np.array([uniform(request_key(0, "r", sample), position) for sample in range(50) for position in range(80)])
    counts = np.histogram(draws, bins=10, range=(0, 1))[0]
    chi2 = ((counts - 400) ** 2 / 400).sum()
    assert chi2 < 27.9  # 9 degrees of freedom, 1 in 1000; the draw is fixed, so this cannot flake
    assert abs(draws.mean() - 0.5) < 3 * math.sqrt(1 / 12 / len(draws))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((0, "r", 0), (1, "r", 0)),
        ((0, "r", 0), (0, "s", 0)),
        ((0, "r", 0), (0, "r", 1)),
        ((0, "1/0", 0), (0, "1/1", 0)),
    ],
)
def test_keys_that_differ_in_anything_are_independent(a: tuple[int, str, int], b: tuple[int, str, int]):
    x, y = (np.array([uniform(request_key(*key), position) for position in range(2000)]) for key in (a, b))
    assert not (x == y).any()
    assert abs(np.corrcoef(x, y)[0, 1]) < 4 / math.sqrt(len(x))


def test_neighbouring_tokens_are_independent():
    draws = np.array([uniform(request_key(0, "r", 0), position) for position in range(4000)])
    for lag in (1, 2, 4):
        assert abs(np.corrcoef(draws[:-lag], draws[lag:])[0, 1]) < 4 / math.sqrt(len(draws))


@given(st.tuples(seeds, st.text(), st.integers(0, 99)), st.tuples(seeds, st.text(), st.integers(0, 99)))
def test_no_two_sequences_share_a_key(a: tuple[int, str, int], b: tuple[int, str, int]):
    assume(a != b)
    assert request_key(*a).tolist() != request_key(*b).tolist()


def test_the_parts_of_a_key_do_not_run_together():
    assert request_key(1, "2", 3).tolist() != request_key(12, "", 3).tolist() != request_key(1, "23", 0).tolist()
    assert request_key(1, "a\x001", 2).tolist() != request_key(1, "a", 12).tolist()


def test_a_key_is_the_hash_that_the_docstring_says():
    digest = hashlib.blake2b(b"5\0id\x007", digest_size=16).digest()
    assert request_key(5, "id", 7).tobytes() == digest


# -- logprobs


def random_logits(rows: int, vocabulary: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 5


@pytest.mark.parametrize("vocabulary", [1, 2, 7, 16, 31, 1000, 49152])
@pytest.mark.parametrize("count", [1, 2])
def test_a_row_does_not_see_its_neighbours(vocabulary: int, count: int, threads: None):
    logits = random_logits(40, vocabulary)
    whole = log_softmax(logits)
    torch.set_num_threads(count)
    for rows in (slice(0, 1), slice(3, 4), slice(5, 7), slice(1, 40), slice(None, None, 3)):
        assert torch.equal(log_softmax(logits[rows].contiguous()).view(torch.int32), whole[rows].view(torch.int32))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    assert torch.equal(log_softmax(logits[order]).view(torch.int32), whole[order].view(torch.int32))
    wild = logits.clone()
    wild[1:] = 1e30
    assert torch.equal(log_softmax(wild)[0].view(torch.int32), whole[0].view(torch.int32))


@pytest.mark.parametrize("vocabulary", [2, 1000, 49152])
def test_log_softmax_is_the_logarithm_of_a_distribution(vocabulary: int):
    logits = random_logits(8, vocabulary)
    exact = torch.log_softmax(logits.double(), -1)
    found = log_softmax(logits)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(found.double().exp().sum(-1), torch.ones(8, dtype=torch.float64), rtol=1e-5, atol=0)
    assert (found <= 0).all()


def test_large_logits_do_not_overflow():
    logits = torch.tensor([[2.0**100, -(2.0**100), 0.0], [-(2.0**100)] * 3])
    assert log_softmax(logits)[0].tolist() == [0.0, -(2.0**101), -(2.0**100)]
    torch.testing.assert_close(log_softmax(logits)[1], torch.full((3,), -math.log(3)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_logprobs_are_float32_or_nothing(dtype: torch.dtype):
    with pytest.raises(AssertionError, match="logprobs are fp32, got torch"):
        log_softmax(torch.zeros(1, 2, dtype=dtype))


def test_the_gradient_is_the_softmax():
    logits = random_logits(3, 11).requires_grad_()
    log_softmax(logits)[torch.arange(3), torch.tensor([0, 5, 10])].sum().backward()
    expected = -torch.softmax(logits.detach(), -1)
    expected[torch.arange(3), torch.tensor([0, 5, 10])] += 1
    torch.testing.assert_close(logits.grad, expected)


def test_temperature_one_and_no_mask_change_no_bit():
    logits = random_logits(5, 100)
    assert torch.equal(processed_logits(logits, torch.ones(5)), logits)


def test_each_row_has_its_temperature():
    logits = random_logits(3, 50)
    together = processed_logits(logits, torch.tensor([0.5, 1.0, 0.7]))
    for row, temperature in enumerate((0.5, 1.0, 0.7)):
        alone = processed_logits(logits[row : row + 1], torch.tensor([temperature]))
        assert torch.equal(alone[0], together[row])
    assert torch.equal(together[0], logits[0] * 2)


def test_the_temperature_belongs_inside_the_softmax():
    """SEM02: log_softmax(logits) / T is another number."""
    logits = random_logits(4, 50)
    right = log_softmax(processed_logits(logits, torch.full((4,), 0.7)))
    torch.testing.assert_close(right, torch.log_softmax(logits / 0.7, -1))
    assert not torch.allclose(right, log_softmax(logits) / 0.7, atol=0.1)


def test_outside_the_support_nothing_is_left():
    logits = random_logits(4, 50)
    keep = logits >= logits.topk(5).values[:, -1:]
    processed = processed_logits(logits, torch.ones(4), keep)
    assert torch.equal(processed[keep], logits[keep])
    assert torch.isneginf(processed[~keep]).all()
    logprobs = log_softmax(processed)
    assert torch.isneginf(logprobs[~keep]).all()
    torch.testing.assert_close(logprobs.exp().sum(-1), torch.ones(4))  # renormalised over what was kept


# -- the estimator of the KL


@given(st.lists(st.floats(-700, 700), min_size=1, max_size=20))
def test_k3_is_never_negative(ratios: list[float]):
    assert (k3(np.array(ratios)) >= 0).all()


@given(st.floats(-(2**-10), 2**-10, width=32))
def test_k3_keeps_its_digits_near_zero(ratio: float):
    """exp(lr) - lr - 1 loses them all: on-policy the metric would be noise."""
    series = ratio**2 / 2 + ratio**3 / 6 + ratio**4 / 24
    assert k3(np.float32(ratio)) == pytest.approx(series, rel=1e-6, abs=1e-18)


def test_k3_by_hand():
    values = k3(np.array([0.0, 1.0, -1.0, math.log(2)], np.float64))
    assert values.dtype == np.float64
    np.testing.assert_allclose(values, [0.0, math.e - 2, 1 / math.e, 1 - math.log(2)], rtol=1e-12)
    assert k3(np.zeros(3, np.float32)).tolist() == [0.0] * 3


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_k3_estimates_the_kl(seed: int):
    """Its exact mean under the sampler is KL(sampler || trainer)."""
    p, q = (torch.log_softmax(random_logits(1, 6, seed + i)[0].double() / 3, -1).numpy() for i in (0, 10_000))
    kl = (np.exp(p) * (p - q)).sum()
    assert (np.exp(p) * k3(q - p)).sum() == pytest.approx(kl, rel=1e-9)
