"""The one logprob, the one KL, the one random-number rule.

In: logits, counters. Out: logprobs and uniforms whose bits depend on nothing but their own row or key.

Letters: N rows, V vocabulary.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

# Philox-4x64 with 10 rounds (Salmon et al. 2011, Random123): the multipliers, and what is added to the key each round.
_MULTIPLIERS_21 = np.array([[0xD2E7470EE14C6C93], [0xCA5A826395121157]], np.uint64)
_INCREMENTS_21 = np.array([[0x9E3779B97F4A7C15], [0xBB67AE8584CAA73B]], np.uint64)
_ROUNDS = 10
_HALF, _LOW, _KEPT = np.uint64(32), np.uint64(0xFFFFFFFF), np.uint64(40)
_ADDED = np.arange(_ROUNDS, dtype=np.uint64)[:, None, None] * _INCREMENTS_21  # [rounds, 2, 1]
_FEW = 8  # rows for which numpy's own generator is faster


def processed_logits(logits_NV: Tensor, temperature_N: Tensor, keep_NV: Tensor | None = None) -> Tensor:
    """Logits fp32 [N, V] of the distribution that is sampled: divided by T, minus infinity outside the support.

    `temperature_N` fp32 is a tensor on both sides, never a Python scalar, so that both divide in the same way.
    """
    scaled_NV = logits_NV / temperature_N[:, None]
    return scaled_NV if keep_NV is None else scaled_NV.masked_fill(~keep_NV, -float("inf"))


def log_softmax(processed_NV: Tensor) -> Tensor:
    """Logprobs fp32 [N, V], the reference. torch's kernel walks each row alone, whatever N and the number of threads.

    Engine and trainer ask kernels/distribution.py, which decides for both whether this or the C++ row function runs.
    """
    assert processed_NV.dtype is torch.float32, f"logprobs are fp32, got {processed_NV.dtype}"
    return torch.log_softmax(processed_NV, dim=-1)


def k3(log_ratio: np.ndarray) -> np.ndarray:
    """Schulman's k3 estimator of KL(sampler || trainer) per token, from lr = trainer - sampler, in float64: >= 0."""
    lr = np.asarray(log_ratio, np.float64)
    with np.errstate(over="ignore"):  # beyond 709 nats it is infinite, and says so
        return np.expm1(lr) - lr


def ratio_metrics(log_ratio: np.ndarray) -> dict[str, float]:
    """Token means of the statistics of lr = trainer - sampler [N], N > 0, in float64, under their published names.

    `ess` is (sum r)^2 / (N sum r^2), 1.0 if all ratios are alike.
    """
    lr = np.asarray(log_ratio, np.float64)
    with np.errstate(over="ignore"):  # a broken engine may well reach infinity; the metric says so
        ratio, divergence = np.exp(lr), k3(lr)
    relative = np.exp(lr - lr.max())  # ess does not change with the scale, and cannot overflow
    return {
        "ratio_new_old": float(ratio.mean()),
        "kl_new_old": float(divergence.mean()),
        "mean_abs_log_ratio_new_old": float(np.abs(lr).mean()),
        "ess": float(relative.sum() ** 2 / (len(lr) * np.square(relative).sum())),
    }


def request_key(seed: int, request: str, sample: int) -> np.ndarray:
    """Philox key uint64 [2] of one sampled sequence: a hash, so that any id may be used and none collide by design."""
    digest = hashlib.blake2b(f"{seed}\0{request}\0{sample}".encode(), digest_size=16).digest()
    return np.frombuffer(digest, np.uint64)


def uniform(key: np.ndarray, position: int) -> float:
    """The uniform in [0, 1) that decides token `position` of the sequence with this key (Philox-4x64, 24 bits kept).

    24 bits are what a float32 in [0, 1) can hold exactly, so every device sees the same number.
    """
    raw = np.random.Philox(key=key, counter=np.array([position, 0, 0, 0], np.uint64)).random_raw()
    return (int(raw) >> 40) / float(1 << 24)


def uniforms(keys_N2: np.ndarray, positions_N: np.ndarray) -> np.ndarray:
    """`uniform` of many keys uint64 [N, 2] and positions [N] at once, float64 [N], the same numbers."""
    if len(keys_N2) <= _FEW:
        return np.array([uniform(key, int(at)) for key, at in zip(keys_N2, positions_N, strict=True)], np.float64)
    key_R2N = _ADDED + np.ascontiguousarray(keys_N2.T)
    even, odd = np.zeros((2, 2, len(positions_N)), np.uint64)  # words 0 and 2 of the counters, words 1 and 3
    even[0] = positions_N
    even[0] += np.uint64(1)  # numpy counts on before it draws
    for key_2N in key_R2N:
        high = _high_word(even)[::-1]
        even, odd = high ^ odd ^ key_2N, (even * _MULTIPLIERS_21)[::-1]
    return (even[0] >> _KEPT).astype(np.float64) / float(1 << 24)


def _high_word(words_2N: np.ndarray) -> np.ndarray:
    """The upper 64 bits of the 128-bit products with the multipliers, from products of halves; none overflows."""
    high_M, low_M = _MULTIPLIERS_21 >> _HALF, _MULTIPLIERS_21 & _LOW
    high, low = words_2N >> _HALF, words_2N & _LOW
    middle = high * low_M + (low * low_M >> _HALF)
    other = low * high_M + (middle & _LOW)
    return high * high_M + (middle >> _HALF) + (other >> _HALF)


def exact(value: np.ndarray) -> str:
    """A float32 [1] for people, with its bits: two that print alike may differ.

    >>> exact(np.array([-0.5], np.float32))
    '-0.5 (0xbf000000)'
    """
    return f"{float(value[0])!r} (0x{int(value.view(np.uint32)[0]):08x})"
