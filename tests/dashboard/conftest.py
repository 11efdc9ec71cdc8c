"""A run on disk that looks like a real one: sums that are learned, over a vocabulary of words."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep.config import RunConfig
from lockstep.core import Contract, Decision, Logprobs, Provenance, Reward, Rollout, SamplingParams, Verdict
from lockstep.trace import RolloutRecord, RunDirectory

WORDS = [
    "",
    *map(str, range(10)),
    " The",
    " sum",
    " is",
    " plus",
    " answer",
    " equals",
    ".",
    " I",
    " think",
    " it",
    " =",
    " ",
]
CONTRACT = Contract("processed", 1.0, "full", "float32", (0,))


@pytest.fixture
def decode() -> Callable[[Sequence[int]], str]:
    """Token ids to text; 0 is the end and has none."""
    return lambda ids: "".join(WORDS[token] for token in ids)


@pytest.fixture
def make_records() -> Callable[..., list[RolloutRecord]]:
    """A function that makes a step's rollouts: `prompts` sums, eight answers each, right with probability `skill`."""
    return records


def records(step: int, skill: float = 0.5, prompts: int = 4, broken: bool = False) -> list[RolloutRecord]:
    draw = np.random.Generator(np.random.Philox(step))
    found = []
    for _ in range(prompts):
        a, b = int(draw.integers(1, 20)), int(draw.integers(1, 20))
        for sample in range(8):
            right = draw.random() < skill
            found.append(_record((a, b), right, f"add-{a}-{b}#{sample}", step, draw))
    if broken:
        values = np.array(found[5].rollout.sampler_logprobs.values)
        values[1] = np.nextafter(values[1], np.float32(0))
        object.__setattr__(found[5], "trainer_logprobs", Logprobs(values, CONTRACT))
    return found


def _record(terms: tuple[int, int], right: bool, identity: str, step: int, draw: np.random.Generator) -> RolloutRecord:
    answer = sum(terms) if right else sum(terms) + int(draw.integers(1, 9))
    lead = [[], [11, 12, 13, 22], [18, 19, 20, 13, 22], [11, 15, 13, 22]][int(draw.integers(0, 4)) if step < 20 else 0]
    ids = np.array([*lead, *(1 + int(digit) for digit in str(answer)), 0], np.int32)
    values = -draw.exponential(0.3 if right else 1.1, len(ids)).astype(np.float32)
    rollout = Rollout(
        id=identity,
        task_id=identity.split("#", maxsplit=1)[0],
        prompt_ids=np.arange(6, dtype=np.int32),
        token_ids=ids,
        text="".join(WORDS[token] for token in ids),
        finish_reason="stop",
        params=SamplingParams(max_tokens=16),
        sampler_logprobs=Logprobs(values, CONTRACT),
        provenance=Provenance(np.zeros(len(ids), np.int32), np.full(len(ids), 2, np.uint8), np.zeros(len(ids), bool)),
    )
    verdict = Verdict("pass", "equal", "last_integer@1")
    if not right:
        verdict = Verdict("fail", "unequal", "last_integer@1", f"got {answer}, expected {sum(terms)}")
    question = f"What is {terms[0]} + {terms[1]}? Answer with just the number."
    prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    return RolloutRecord(
        step=step,
        rollout=rollout,
        prompt=prompt,
        reward=Reward(identity, float(right)),
        advantage=0.94 if right else -1.06,
        trainer_logprobs=Logprobs(values, CONTRACT),
        verdict=verdict,
    )


def line(step: int, **changes: Any) -> dict[str, Any]:
    """The metrics of a step, all of them."""
    draw = np.random.Generator(np.random.Philox(step))
    skill = 0.09 + 0.62 * (1 - math.exp(-step / 14)) + float(draw.normal(0, 0.035))
    rollout, train = 2.6 + float(draw.normal(0, 0.1)), 1.9 + float(draw.normal(0, 0.1))
    found = {
        "step": step, "reward": skill, "reward_std": math.sqrt(max(skill * (1 - skill), 0.0)),
        "rewards/check/mean": skill,
        "frac_reward_zero_std": float(draw.integers(0, 4)) / 8, "completions/mean_length": 4 + 7 * math.exp(-step / 9),
        "completions/clipped_ratio": 0.4 * math.exp(-step / 5), "entropy": 0.25 + 0.7 * math.exp(-step / 12), "kl": 0.0,
        "loss": float(draw.normal(0, 0.004)), "grad_norm": 1.4 + float(draw.normal(0, 0.2)), "learning_rate": 1e-5,
        "ratio_new_old": 1.0, "kl_new_old": 0.0, "mean_abs_log_ratio_new_old": 0.0,
        "clamp_log_ratio_new_old_indicator": 0.0, "ess": 1.0, "lag": 0.0, "parity/max": 0.0, "parity/p99": 0.0,
        "parity/mean": 0.0, "parity/frac_differing": 0.0, "parity/num_tokens": int(draw.integers(640, 1024)),
        "time/step": rollout + train + 0.19, "time/rollout": rollout, "time/reward": 0.004, "time/parity": 0.012,
        "time/train": train, "time/publish": 0.14, "throughput/tokens_per_s": 140 + float(draw.normal(0, 5)),
        "throughput/rollout_tokens_per_s": 320 + float(draw.normal(0, 12)),
        "throughput/train_tokens_per_s": 1480 + float(draw.normal(0, 40)), "memory/peak_gb": 3.1,
        "weight_version": step,
    }  # fmt: skip
    return found | changes


@pytest.fixture
def make_line() -> Callable[..., dict[str, Any]]:
    return line


@pytest.fixture
def make_run() -> Callable[..., RunDirectory]:
    """A function that writes a run and leaves it unlocked."""
    return build


def build(
    path: Path, steps: int = 12, refused: int | None = None, outcome: str | None = "finished", **config: Any
) -> RunDirectory:
    settings = RunConfig.model_validate({"model": "smollm2", "max_steps": max(steps, 1), **config})
    with RunDirectory.start(path, settings) as run:
        run.update_manifest(
            {"model": {"path": "smollm2", "digest": "9f" * 32}, "invariance": {"linear 576x960": "use"}}
        )
        run.append_evaluation({"step": 0, "eval/accuracy": 0.15, "eval/num_tasks": 80})
        for step in range(1, steps + 1):
            run.append(line(step))
            if step in (1, steps):
                run.write_rollouts(step, records(step, 0.15 if step == 1 else 0.7))
        if refused is not None:
            first = {
                "rollout_id": "add-3-4#5", "index": 1, "token_id": 5, "sampler": -0.31, "trainer": -0.3099999,
                "sampler_bits": "0xbe9eb852", "trainer_bits": "0xbe9eb851", "path": "decode",
            }  # fmt: skip
            evidence = {
                "status": "differs",
                "num_tokens": 201,
                "num_differing": 1,
                "first": first,
                "finding": "1 of 201",
            }
            decision = Decision("reject", f"proposal-{refused}", "1 of 201 tokens differ; first: token 1", evidence)
            run.write_refusal(refused, decision, records(refused, broken=True))
        if outcome == "finished":
            run.append_evaluation({"step": steps, "eval/accuracy": 0.7125, "eval/num_tasks": 80})
        if outcome:
            run.finish(outcome, {})
    return run
