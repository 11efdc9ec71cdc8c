"""The columns of a rollout file, in every version that can be read.

In: nothing. Out: `SCHEMA`, which is written, and `READABLE`, the schema of each version. A version is never changed
once a run has written it; a new one says what it adds.
"""

from __future__ import annotations

from dataclasses import fields

import pyarrow as pa

from lockstep.core import Contract, SamplingParams, Span, Verdict

VERSION = b"2"
KEY = b"lockstep.rollouts"

_BIAS = pa.struct([("id", pa.int32()), ("bias", pa.float64())])
_PARAMS_1 = [
    ("temperature", pa.float64()),
    ("top_k", pa.int64()),
    ("top_p", pa.float64()),
    ("min_p", pa.float64()),
    ("max_tokens", pa.int64()),
    ("n", pa.int64()),
    ("seed", pa.uint64()),
    ("stop", pa.list_(pa.string())),
    ("stop_token_ids", pa.list_(pa.int64())),
    ("ignore_eos", pa.bool_()),
]
_PARAMS = pa.struct(
    [
        *_PARAMS_1,
        ("presence_penalty", pa.float64()),
        ("frequency_penalty", pa.float64()),
        ("repetition_penalty", pa.float64()),
        ("logit_bias", pa.list_(_BIAS)),
        ("bad_words", pa.list_(pa.list_(pa.int32()))),
        ("prompt_logprobs", pa.bool_()),
    ]
)
_CONTRACT_1 = [
    ("mode", pa.string()),
    ("temperature", pa.float64()),
    ("support", pa.string()),
    ("head_dtype", pa.string()),
    ("weight_versions", pa.list_(pa.int64())),
]
_CONTRACT = pa.struct([*_CONTRACT_1, ("adjustments", pa.string())])
_VERDICT = pa.struct(
    [
        ("status", pa.string()),
        ("code", pa.string()),
        ("check", pa.string()),
        ("witness", pa.string()),
        ("span", pa.list_(pa.int64())),
        ("seconds", pa.float64()),
    ]
)
_SPAN = pa.struct([("start", pa.int32()), ("end", pa.int32()), ("version", pa.int32())])
_COLUMNS = [
    ("step", pa.int64()),
    ("rollout_id", pa.string()),
    ("task_id", pa.string()),
    ("prompt", pa.string()),
    ("completion", pa.string()),
    ("finish_reason", pa.string()),
    ("reward", pa.float64()),
    ("reward_parts", pa.map_(pa.string(), pa.float64())),
    ("advantage", pa.float64()),
    ("verdict", _VERDICT),
    ("prompt_ids", pa.list_(pa.int32())),
    ("token_ids", pa.list_(pa.int32())),
    ("sampler_logprobs", pa.list_(pa.float32())),
    ("sampler_contract", _CONTRACT),
    ("prompt_logprobs", pa.list_(pa.float32())),
    ("prompt_contract", _CONTRACT),
    ("trainer_logprobs", pa.list_(pa.float32())),
    ("trainer_contract", _CONTRACT),
    ("weight_version", pa.list_(pa.int32())),
    ("path", pa.list_(pa.uint8())),
    ("cached", pa.list_(pa.bool_())),
    ("spans", pa.list_(_SPAN)),
    ("support_ids", pa.list_(pa.int32())),
    ("support_offsets", pa.list_(pa.int64())),
    ("params", _PARAMS),
]
for _type, _class in ((_PARAMS, SamplingParams), (_CONTRACT, Contract), (_VERDICT, Verdict), (_SPAN, Span)):
    assert [f.name for f in fields(_class)] == [f.name for f in _type], f"the schema covers {_class.__name__}"

SCHEMA = pa.schema(_COLUMNS, metadata={KEY: VERSION})

_ADDED_BY_2 = ("prompt_logprobs", "prompt_contract", "spans")
_NARROWER_IN_1 = {"params": pa.struct(_PARAMS_1)} | dict.fromkeys(
    ("sampler_contract", "trainer_contract"), pa.struct(_CONTRACT_1)
)
READABLE = {
    b"1": pa.schema([(name, _NARROWER_IN_1.get(name, kind)) for name, kind in _COLUMNS if name not in _ADDED_BY_2]),
    VERSION: SCHEMA,
}
"""Version -> schema. Version 1 knew no adjustments, prompt logprobs or spans."""
