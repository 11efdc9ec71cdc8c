"""A rollout to put on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lockstep.core import Contract, Logprobs, Path, Provenance, Rollout, SamplingParams
from lockstep.trace import RolloutRecord


@pytest.fixture
def make_record() -> Callable[..., RolloutRecord]:
    """A function that makes a record of `count` tokens, with fields of the record replaced."""

    def make(count: int = 3, **changes: Any) -> RolloutRecord:
        rollout = Rollout(
            id="add-3#0",
            task_id="add-3",
            prompt_ids=np.arange(5, dtype=np.int32),
            token_ids=np.arange(count, dtype=np.int32) + 100,
            text="4",
            finish_reason="stop",
            params=SamplingParams(max_tokens=8, seed=7),
            sampler_logprobs=Logprobs(
                -np.arange(count, dtype=np.float32), Contract("processed", 1.0, "full", "float32", (0,))
            ),
            provenance=Provenance(
                np.zeros(count, np.int32), np.full(count, Path.DECODE, np.uint8), np.zeros(count, bool)
            ),
        )
        return replace(RolloutRecord(1, rollout, "What is 2 + 2?"), **changes)

    return make
