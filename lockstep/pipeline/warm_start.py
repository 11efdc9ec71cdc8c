"""Supervised steps before RL, for a model that cannot answer at all yet.

In: the trainer and the training problems. Out: changed weights. The examples of a step depend on (seed, step) only.
"""

from __future__ import annotations

from collections.abc import Callable

from lockstep.config import RunConfig
from lockstep.errors import InputError, message
from lockstep.models import Model
from lockstep.tasks import TaskSet, batch_of
from lockstep.train import Trainer


def warm_start(
    config: RunConfig, model: Model, tasks: TaskSet, trainer: Trainer, on_step: Callable[[int, int], None]
) -> float:
    """Run `config.warm_start.steps` steps of cross entropy on the known answers; returns the last loss (nats)."""
    eos, loss = model.tokenizer.eos_ids[:1], float("nan")
    for step in range(config.warm_start.steps):
        chosen = batch_of(tasks, step, config.warm_start.batch, config.seed)
        for task in chosen:
            if task.answer is None:
                do = "Set warm_start.steps=0, or give the answers"
                raise InputError(
                    message(f"task ({task.id})", "a warm start needs answers", got="none", expected="text", do=do)
                )
        prompts = [model.tokenizer.encode_prompt(task.prompt) for task in chosen]
        answers = [[*model.tokenizer.encode(task.answer or ""), *eos] for task in chosen]
        loss = trainer.supervise(prompts, answers)
        on_step(step + 1, config.warm_start.steps)
    return loss
