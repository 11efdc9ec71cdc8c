"""What a finished completion hands out."""

from __future__ import annotations

import numpy as np
import pytest

from lockstep.core import Path, Request, SamplingParams
from lockstep.engine.request import Job


def finished(params: SamplingParams, tokens, versions=None) -> Job:
    job = Job(Request("r", (5, 6, 7), params, task_id="t"), params.max_tokens)
    for completion in job.completions:
        for i, token in enumerate(tokens):
            kept = np.array([token, token + 1], np.int32) if params.truncates else None
            path = Path.PREFILL if i == 0 else Path.DECODE
            completion.append(token + completion.index, -0.5 * i, (versions or [3] * 9)[i], path, kept)
        completion.finish_reason = "length"
    return job


def test_a_rollout_repeats_what_was_appended():
    job = finished(SamplingParams(max_tokens=3, n=2), [10, 20, 30])
    rollout = job.completions[1].rollout("text", "float32")
    assert (rollout.id, rollout.task_id, rollout.text, rollout.finish_reason) == ("r/1", "t", "text", "length")
    assert rollout.prompt_ids.tolist() == [5, 6, 7]
    assert rollout.token_ids.tolist() == [11, 21, 31]
    assert rollout.sampler_logprobs.values.tolist() == [0.0, -0.5, -1.0]
    assert rollout.provenance.path.tolist() == [0, 2, 2]
    assert rollout.provenance.cached.tolist() == [False] * 3
    assert rollout.support is None
    types = [rollout.token_ids, rollout.sampler_logprobs.values, rollout.provenance.weight_version]
    assert [a.dtype for a in types] == [np.int32, np.float32, np.int32]


def test_the_contract_lists_the_distinct_versions():
    job = finished(SamplingParams(max_tokens=4, temperature=0.7), [1, 2, 3, 4], [2, 2, 3, 3])
    contract = job.completions[0].rollout("", "model").sampler_logprobs.contract
    assert contract.weight_versions == (2, 3)
    assert (contract.mode, contract.temperature, contract.head_dtype) == ("processed", 0.7, "model")


def test_supports_are_ragged():
    rollout = finished(SamplingParams(max_tokens=2, top_k=2), [4, 8]).completions[0].rollout("", "float32")
    assert rollout.support is not None
    assert rollout.support.ids.tolist() == [4, 5, 8, 9]
    assert rollout.support.offsets.tolist() == [0, 2, 4]
    assert (rollout.support.ids.dtype, rollout.support.offsets.dtype) == (np.int32, np.int64)


def test_a_completion_without_tokens_is_a_rollout_too():
    rollout = finished(SamplingParams(max_tokens=2, top_k=2), []).completions[0].rollout("", "float32")
    assert len(rollout.token_ids) == len(rollout.sampler_logprobs) == len(rollout.provenance) == 0
    assert rollout.support is not None
    assert rollout.support.offsets.tolist() == [0]
    assert rollout.sampler_logprobs.contract.weight_versions == ()


def test_rollouts_own_their_arrays_and_the_prompt_is_read_only():
    completion = finished(SamplingParams(max_tokens=2), [1, 2]).completions[0]
    rollout = completion.rollout("", "float32")
    completion.tokens[:] = 0
    completion.logprobs[:] = 0
    assert rollout.token_ids.tolist() == [1, 2]
    assert rollout.sampler_logprobs.values.tolist() == [0.0, -0.5]
    with pytest.raises(ValueError, match="read-only"):
        rollout.prompt_ids[0] = 1


def test_an_unfinished_completion_is_no_rollout():
    job = Job(Request("r", (1,), SamplingParams()), 4)
    assert not job.done
    with pytest.raises(AssertionError):
        job.completions[0].rollout("", "float32")
