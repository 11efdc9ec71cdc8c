"""The addition recipe for both trainers: our configuration, the same problems in the same order, the same optimizer.

In: options, a seed. Out: the entrants of the rows `train` and `learn`.

Off the recipe are three keys, so that both run one algorithm: completions of up to 32 tokens, the mean over sequences
of each one's mean over tokens (TRL's loss_type "grpo"), and the reward function that TRL gets.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.environment import PEERS
from bench.options import OURS, Options, program
from lockstep import models
from lockstep.adapters.engines.process import Program
from lockstep.config import RunConfig, load
from lockstep.tasks import batch_of, load_tasks

RECIPE = Path(__file__).parents[1] / "recipes" / "smollm2-add.toml"
MAX_TOKENS = 32
TRL, TRL_MASTERS = "TRL", "TRL (fp32 weights)"
"""TRL with weights and moments in bf16, the fastest, in which most of the updates at this rate are rounded away; and
with both in fp32 under autocast, which is what our fp32 masters are to be compared with."""
NAMES = (OURS, TRL, TRL_MASTERS)
MICRO_BATCH = 8
"""Of TRL, in completions: in trials of one thread faster than 16 or all 64 at once."""


def configuration(options: Options, steps: int, seed: int) -> RunConfig:
    """Ours, for up to `steps` steps; without checkpoints, as TRL writes none."""
    overrides = {
        "model": options.model,
        "max_steps": steps,
        "seed": seed,
        "threads": options.threads,
        "sampling.max_tokens": 8 if options.trial else MAX_TOKENS,
        "num_prompts_per_step": 2 if options.trial else 8,
        "num_generations": 4 if options.trial else 8,
        "loss.normalize": "sequence",
        "task.reward": f"{PEERS / 'reward.py'}:exact_integer",
        "train.checkpoint_every": steps,
        "eval.max_tasks": 1,  # the loop's own, which nobody looks at
    }
    return load([RECIPE], [f"{key}={value}" for key, value in overrides.items()]).model_copy(update={"report_to": ()})


def trainer(name: str, config: RunConfig, options: Options) -> Program:
    """The program called `name` (one of NAMES)."""
    if name == OURS:
        return program(name, "lockstep_trainer", None, {"config": config.model_dump(mode="json")}, options.variables())
    tasks = load_tasks(config.task, config.seed)
    steps = [batch_of(tasks, i, config.num_prompts_per_step, config.seed) for i in range(config.max_steps)]
    settings: dict[str, Any] = {
        "model": str(models.resolve(config.model)),
        "threads": options.threads,
        "seed": config.seed,
        "weights": "float32" if name == TRL_MASTERS else "bfloat16",
        "micro_batch": MICRO_BATCH,
        "num_prompts": config.num_prompts_per_step,
        "num_generations": config.num_generations,
        "max_tokens": config.sampling.max_tokens,
        "lr": config.optim.lr,
        "problems": [(task.prompt, task.answer) for step in steps for task in step],
    }
    return program(name, "trl_trainer", "trl", settings, options.variables())


def examiner(config: RunConfig, options: Options) -> Program:
    """Who says how many of the held-out problems some weights answer."""
    problems = [(task.prompt, task.answer) for task in load_tasks(config.task, config.seed).held_out]
    settings = {"threads": options.threads, "max_tokens": config.sampling.max_tokens, "problems": problems}
    return program("examiner", "lockstep_examiner", None, settings, options.variables())
