"""Accuracy on problems that were never trained on.

In: the trainer's weights, tasks, their check. Out: the fraction of passes, and the count of what was not decided.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lockstep.core import Request, Rollout, SamplingParams
from lockstep.engine import Engine
from lockstep.pipeline.assembly import Parts

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """`passed` of `total`; undecided tasks count as not passed and are said apart."""

    passed: int
    undecided: int
    total: int

    @property
    def value(self) -> float:
        return self.passed / self.total


def evaluate(parts: Parts, progress: Progress) -> dict[str, float]:
    """Every held-out problem answered once greedily, and once drawn as in training; the same weights, the same answers.

    Requests in flight are left alone: if there may be any, an engine of its own answers.
    """
    config = parts.config
    engine = parts.engine
    if not isinstance(engine, Engine) or engine.has_work:
        engine = Engine(parts.model, parts.trainer.params, parts.trainer.version, config.engine, config.device)
    drawn = SamplingParams(**config.sampling.model_dump(), seed=config.seed)
    greedy = SamplingParams(temperature=0.0, max_tokens=config.sampling.max_tokens)
    found, sampled = (_accuracy(parts, engine, params, progress) for params in (greedy, drawn))
    return {
        "eval/accuracy": found.value,
        "eval/num_tasks": found.total,
        "eval/num_undecided": found.undecided,
        "eval/sampled_accuracy": sampled.value,
    }


def _accuracy(parts: Parts, engine: Engine, params: SamplingParams, progress: Progress) -> Accuracy:
    tasks = parts.tasks.held_out[: parts.config.eval.max_tasks or None]
    encode = parts.model.tokenizer.encode_prompt
    requests = [Request(f"eval/{i}", tuple(encode(task.prompt)), params, task.id) for i, task in enumerate(tasks)]
    rollouts = _answers(engine, requests, progress)
    verdicts = [parts.check.check(task, rollout.text).status for task, rollout in zip(tasks, rollouts, strict=True)]
    return Accuracy(verdicts.count("pass"), len([v for v in verdicts if v not in ("pass", "fail")]), len(tasks))


def _answers(engine: Engine, requests: Sequence[Request], progress: Progress) -> list[Rollout]:
    """Run the engine until all is drawn; `progress` may raise between its steps, which aborts what is in flight."""
    found: dict[str, Rollout] = {}
    try:
        for request in requests:
            engine.add(request)
        while engine.has_work:
            progress(len(found), len(requests))
            found |= {rollout.id: rollout for rollout in engine.step()}
    finally:
        for request in requests:
            engine.abort(request.id)
    return [found[f"{request.id}/0"] for request in requests]
