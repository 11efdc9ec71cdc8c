"""Small good files of every format, with the columns that the framework itself writes; sources are in each reader."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lockstep.config import RunConfig
from lockstep.core import Contract, Logprobs, Provenance, Rollout, SamplingParams
from lockstep.trace import RolloutRecord, RunDirectory

Rows = list[dict[str, Any]]


def trl_rows(step: int) -> Rows:
    """Two prompts, two completions each; one reward function abstained once (NaN), one column is from log_extra."""
    return [
        {
            "step": step,
            "prompt": f"What is {at // 2} + 2?",
            "completion": f"It is {at // 2 + 2}.",
            "accuracy_reward": 1.0 if at % 2 else float("nan"),
            "golden_answer": str(at // 2 + 2),
            "advantage": 0.5 - at % 2,
        }
        for at in range(4)
    ]


def verl_rows(step: int) -> Rows:
    """As `_dump_generations` puts them together: texts, ground truth, score, and the reward function's extras."""
    return [
        {"input": "user\n1+1\nassistant\n", "output": str(at), "gts": "2", "score": float(at == 2), "step": step,
         "acc": at == 2, "request_id": f"{step}-{at}"}
        for at in range(3)
    ]  # fmt: skip


def prime_row(step: int, rank: int, index: int) -> dict[str, Any]:
    """Two turns with a tool's answer between them; what is not in the loss has 0.0 for the sampler."""
    mask = [False, False, True, True, False, True, True, True]
    sampler = [0.0, 0.0, -0.5, -1.25, 0.0, -0.125, -2.0, -0.75]
    trainer = [-11.9, -3.0, -0.5, -1.5, -4.0, -0.125, -2.0, -0.5]
    ratio = [t - s for t, s in zip(trainer, sampler, strict=True)]
    nothing = [None] * len(mask)
    return {
        "schema_version": 1, "step": step, "rank": rank, "micro_step": 0, "micro_sequence_idx": index,
        "export_sequence_idx": index, "env_name": "gsm8k",
        "token_ids": [1, 17, 40 + index, 41, 9, 42, 43, 2], "position_ids": list(range(8)), "loss_mask": mask,
        "advantages": [0.5] * 8, "inference_logprobs": sampler, "trainer_logprobs": trainer, "entropy": [0.1] * 8,
        "mismatch_kl": [0.0] * 8, "log_importance_ratio": ratio, "importance_ratio": [float(np.exp(r)) for r in ratio],
        "prob_delta": [0.0] * 8, "is_masked": [False] * 6 + [True, False], "is_masked_high": [False] * 8,
        "is_masked_low": [False] * 8, "rl_weights": nothing, "ce_weights": nothing, "ref_kl_weights": nothing,
    }  # fmt: skip


def pipeline_text(group: str, rollout: int, version: int = 64) -> dict[str, Any]:
    """A `TrainingText` as `model_dump` gives it, after the actor has put its metadata in."""
    return {
        "text": "<user>2+2<assistant>4<eos>", "n_predicted": 6, "reward": 1.0,
        "logprobs": [-0.25 - rollout, -0.5], "ref_logprobs": [], "input_ids": [5, 6, 7, 8, 2],
        "labels": [-100, -100, -100, 8, 2], "group_id": group, "finished": True, "prompt_tokens": 3,
        "output_tokens": 2, "visual_features": None,
        "metadata": {"model_version": version, "rollout_index": rollout, "step_index": 0},
    }  # fmt: skip


def pipeline_batch() -> dict[str, Any]:
    """Two sequences packed, and one token of padding for sequence parallelism."""
    return {
        "input_ids": [[5, 6, 8, 2, 5, 9, 2, 0]], "attention_mask": [[1] * 8],
        "labels": [[-100, -100, 8, 2, -100, 9, 2, -100]], "position_ids": [[0, 1, 2, 3, 0, 1, 2, 0]],
        "segment_ids": [[0, 0, 0, 0, 1, 1, 1, 2]], "rewards": [[1.0] * 8], "advantages": [[0.5] * 8],
        "ref_logprobs": [[0.0, 0.0, -0.5, -1.0, 0.0, -2.0, -0.25, 0.0]],
        "old_logprobs": [[0.0, 0.0, -0.25, -1.0, 0.0, -2.5, -0.25, 0.0]], "group_tokens": [[4.0] * 8],
        "num_labels": [[2.0] * 8], "overflow": [[0.0] * 8], "model_version": 64, "sentinel": False, "padding": 1,
        "is_packed": True, "seq_boundaries": [0, 4, 7, 8], "pixel_values": None, "image_grid_thw": None,
    }  # fmt: skip


def completion(name: str = "cmpl-1", **choice: Any) -> dict[str, Any]:
    """A response of /v1/completions with `logprobs=0, return_token_ids=True`."""
    whole = {
        "index": 0, "text": " 4", "finish_reason": "stop", "stop_reason": None, "token_ids": [8, 2],
        "prompt_logprobs": None, "prompt_token_ids": [5, 6, 7],
        "logprobs": {"text_offset": [0, 2], "token_logprobs": [-0.25, -0.5], "tokens": [" 4", ""],
                     "top_logprobs": [{" 4": -0.25}, {"": -0.5}]},
    }  # fmt: skip
    return {
        "id": name, "object": "text_completion", "created": 1, "model": "m", "choices": [{**whole, **choice}],
        "system_fingerprint": "vllm-0.32.0-tp1-0a1b2c", "kv_transfer_params": None,
        "usage": {"prompt_tokens": 3, "total_tokens": 5, "completion_tokens": 2,
                  "prompt_tokens_details": {"cached_tokens": 2}},
    }  # fmt: skip


def chat(name: str = "chatcmpl-1", **choice: Any) -> dict[str, Any]:
    """A response of /v1/chat/completions with `return_tokens_as_token_ids`, which gives no `token_ids`."""
    content = [
        {"token": f"token_id:{i}", "logprob": value, "bytes": [52], "top_logprobs": []}
        for i, value in ((8, -0.25), (2, -9999.0))
    ]
    whole = {
        "index": 0, "message": {"role": "assistant", "content": "4"}, "logprobs": {"content": content},
        "finish_reason": "stop", "stop_reason": None, "token_ids": None,
    }  # fmt: skip
    return {
        "id": name, "object": "chat.completion", "created": 1, "model": "m", "choices": [{**whole, **choice}],
        "usage": {"prompt_tokens": 3, "total_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": None},
        "prompt_logprobs": None, "prompt_token_ids": [5, 6, 7], "kv_transfer_params": None,
    }  # fmt: skip


def episode(name: str = "e1", policy: Mapping[str, int] | None = None) -> dict[str, Any]:
    """An episode of two turns, as `Episode.to_record` writes it: keys that are None are not there."""
    sampling = {"temperature": 0.7, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
    nodes = [
        {"message": {"role": "user", "content": "2+2"}, "sampled": False, "token_ids": [5, 6], "mask": [False] * 2,
         "is_content": [], "logprobs": []},
        {"parent": 0, "message": {"role": "assistant", "content": "4"}, "sampled": True, "token_ids": [7, 8, 2],
         "mask": [False, True, True], "is_content": [], "logprobs": [-0.25, -0.5]},
        {"parent": 1, "message": {"role": "user", "content": "sure?"}, "sampled": False, "token_ids": [9],
         "mask": [False], "is_content": [], "logprobs": []},
        {"parent": 2, "message": {"role": "assistant", "content": "yes"}, "sampled": True, "token_ids": [7, 10],
         "mask": [False, True], "is_content": [], "logprobs": [-1.5]},
    ]  # fmt: skip
    calls = [
        {"node": 1, "model": "m", "sampling": sampling, "endpoint": "/generate", "finish_reason": "stop",
         "usage": {"prompt_tokens": 3, "completion_tokens": 2, "cached_input_tokens": 0}},
        {"node": 3, "model": "m", "sampling": {"temperature": 0.7}, "finish_reason": "length",
         "usage": {"prompt_tokens": 2, "completion_tokens": 1, "cached_input_tokens": 5}},
    ]  # fmt: skip
    trace = {
        "version": 3, "id": f"{name}-t", "verifiers": {"version": "0.3.0"}, "nodes": nodes, "calls": calls,
        "task": {"type": "Task", "data": {}}, "agent": {"config": {}, "name": "solver", "trainable": True},
        "rewards": {"exact": {"score": 1.0, "weight": 1.0}}, "is_completed": True, "ok": True,
    }  # fmt: skip
    work = {"type": "train", "step": 3, **({} if policy is None else {"policy": dict(policy)})}
    return {
        "id": name, "env": {"id": "gsm8k"}, "task": {"type": "Task", "data": {}}, "group": {"id": "g1"},
        "run": {"type": "train", "id": "r", "work": work}, "ok": True, "errors": [], "traces": [trace],
    }  # fmt: skip


def lockstep_record(step: int, index: int = 0, **changes: Any) -> RolloutRecord:
    """A rollout of three tokens, both series with the same bits."""
    contract = Contract("processed", 0.5, "full", "float32", (step,))
    values = np.array([-0.25, -0.5 - index, -1.5 - step], np.float32)
    rollout = Rollout(
        id=f"s{step}/{index}",
        task_id="add",
        prompt_ids=np.arange(4, dtype=np.int32),
        token_ids=np.array([40, 41, 2], np.int32),
        text="4",
        finish_reason="stop",
        params=SamplingParams(temperature=0.5, max_tokens=8),
        sampler_logprobs=Logprobs(values, contract),
        provenance=Provenance(np.full(3, step, np.int32), np.full(3, 2, np.uint8), np.zeros(3, bool)),
    )
    record = {"step": step, "rollout": rollout, "prompt": "2+2", "trainer_logprobs": Logprobs(values.copy(), contract)}
    return RolloutRecord(**{**record, **changes})


def write_lines(file: Path, rows: list[Any]) -> Path:
    """JSONL as Python's json writes it, NaN and all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def write_trl(path: Path) -> Path:
    for step in (10, 20):
        file = path / "completions" / f"completions_{step:05d}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(trl_rows(step)), file)
    return path


def write_verl(path: Path) -> Path:
    for step in (9, 10):
        write_lines(path / f"{step}.jsonl", verl_rows(step))
    return path


def write_prime(path: Path) -> Path:
    for step in (9, 10):
        for rank in (0, 1):
            rows = [prime_row(step, rank, index) for index in range(2)]
            write_lines(path / "token_exports" / f"step_{step}" / f"rank_{rank}.jsonl", rows)
        (path / "token_exports" / f"step_{step}" / "STABLE").touch()
    return path


def write_episodes(path: Path) -> Path:
    write_lines(path / "rollouts" / "step_3" / "train" / "effective" / "traces.jsonl", [episode("e1"), episode("e2")])
    return path


def write_pipeline(path: Path) -> Path:
    file = path / "streams" / "actor" / "0" / "0" / "0.jsonl"
    file.parent.mkdir(parents=True)
    groups = [[pipeline_text(f"actor_{group}", rollout) for rollout in range(2)] for group in range(3)]
    file.write_bytes(b"".join(orjson.dumps(group) + b"\n" for group in groups))
    return path


def write_batches(path: Path) -> Path:
    sentinel = {**pipeline_batch(), "sentinel": True}
    write_lines(path / "streams" / "training_data" / "0" / "0" / "0.jsonl", [pipeline_batch(), sentinel])
    return path


def write_responses(path: Path) -> Path:
    other = {**chat("b"), "prompt_token_ids": [9, 6, 7]}
    write_lines(path / "responses.jsonl", [completion("a"), other, completion("c")])
    return path


def write_lockstep(path: Path) -> Path:
    with RunDirectory.start(path, RunConfig(model="tiny")) as run:
        for step in (1, 2):
            run.write_rollouts(step, [lockstep_record(step, index) for index in range(2)])
            run.append({"step": step, "reward": 0.5, "ratio_new_old": 1.0})
    return path


WRITERS: dict[str, Callable[[Path], Path]] = {
    "Lockstep rollouts": write_lockstep,
    "TRL completions": write_trl,
    "verl rollouts": write_verl,
    "prime-rl token exports": write_prime,
    "prime-rl episodes": write_episodes,
    "PipelineRL texts": write_pipeline,
    "PipelineRL micro batches": write_batches,
    "OpenAI-compatible responses": write_responses,
}


class Good:
    """What the tests write: rows of every format, and whole runs by the name of their format."""

    trl_rows = staticmethod(trl_rows)
    verl_rows = staticmethod(verl_rows)
    prime_row = staticmethod(prime_row)
    pipeline_text = staticmethod(pipeline_text)
    pipeline_batch = staticmethod(pipeline_batch)
    completion = staticmethod(completion)
    chat = staticmethod(chat)
    episode = staticmethod(episode)
    lockstep_record = staticmethod(lockstep_record)
    lines = staticmethod(write_lines)
    writers = WRITERS

    @staticmethod
    def run(name: str, path: Path) -> Path:
        """Write a run of the format called `name` at `path`."""
        return WRITERS[name](path)


@pytest.fixture(scope="session")
def good() -> type[Good]:
    """Rows and runs as the frameworks write them."""
    return Good
