"""The one logprob, the one KL, the one random-number rule.

In: logits, counters. Out: logprobs and uniforms whose bits depend on nothing but their own row or key.

Letters: N rows, V vocabulary.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor


def processed_logits(logits_NV: Tensor, temperature_N: Tensor, keep_NV: Tensor | None = None) -> Tensor:
    """Logits fp32 [N, V] of the distribution that is sampled: divided by T, minus infinity outside the support.

    `temperature_N` fp32 is a tensor on both sides, never a Python scalar, so that both divide in the same way.
    """
    scaled_NV = logits_NV / temperature_N[:, None]
    return scaled_NV if keep_NV is None else scaled_NV.masked_fill(~keep_NV, -float("inf"))


def log_softmax(processed_NV: Tensor) -> Tensor:
    """Logprobs fp32 [N, V]. torch's kernel walks each row alone, whatever N and the number of threads."""
    assert processed_NV.dtype is torch.float32, f"logprobs are fp32, got {processed_NV.dtype}"
    return torch.log_softmax(processed_NV, dim=-1)


def k3(log_ratio: np.ndarray) -> np.ndarray:
    """Schulman's k3 estimator of KL(sampler || trainer) per token, from lr = trainer - sampler, in float64: >= 0."""
    lr = np.asarray(log_ratio, np.float64)
    with np.errstate(over="ignore"):  # beyond 709 nats it is infinite, and says so
        return np.expm1(lr) - lr


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
