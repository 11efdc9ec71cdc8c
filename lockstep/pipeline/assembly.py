"""From a configuration to the parts of a run, checked before the first token.

In: a `RunConfig`. Out: `Parts`, with what the manifest says about them. Everything that can be refused is refused here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lockstep import checks, models
from lockstep.config import RunConfig
from lockstep.core import Check
from lockstep.engine import Engine
from lockstep.engine.remote import RemoteEngine
from lockstep.errors import InputError, message
from lockstep.gates.parity import ParityGate
from lockstep.kernels.probe import Subject, invariance_probe
from lockstep.kernels.threads import num_cores
from lockstep.models import Model
from lockstep.models.checkpoint import read_parameters
from lockstep.models.prepared import head_weight
from lockstep.models.pull import Progress
from lockstep.rewards import Rewarder, load_reward
from lockstep.tasks import TaskSet, load_tasks
from lockstep.train import Trainer
from lockstep.train.history import WeightHistory


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """What a run is made of."""

    config: RunConfig
    model: Model
    tasks: TaskSet
    check: Check
    rewarder: Rewarder
    engine: Engine | RemoteEngine
    trainer: Trainer
    gate: ParityGate
    history: WeightHistory
    manifest: dict[str, Any]

    def close(self) -> None:
        """End the engine's process, if it has one of its own."""
        if isinstance(self.engine, RemoteEngine):
            self.engine.close()


def assemble(config: RunConfig, progress: Progress | None = None) -> Parts:
    """Load the model, probe the machine, set up engine and trainer on equal weights.

    Raises `InputError` and `ModelError` for anything the user can mend, `NumericsError` if rows are not invariant here.
    """
    require_device(config.device)
    remote = config.pipeline.executor == "processes"
    if config.threads or remote:
        torch.set_num_threads(config.threads or _half_the_cores())
    tasks = load_tasks(config.task, config.seed)
    check = checks.find(tasks.check)
    rewarder = load_reward(config.task.reward, check)
    model = models.load(config.model, progress)
    _require_room(config, model, tasks)
    params = read_parameters(model.path, model.arch, getattr(torch, config.engine.dtype), config.device)
    heads = (model.arch.num_heads, model.arch.num_kv_heads, model.arch.head_dim)
    head = head_weight(params, model.arch, config.engine.head_dtype)
    invariance = invariance_probe(Subject(params, head, heads))
    del head
    trainer = Trainer(model, params, config, config.device)
    start = trainer.snapshot()
    engine: Engine | RemoteEngine
    if remote:
        threads = config.pipeline.engine_threads or _half_the_cores()
        engine = RemoteEngine(model, start, trainer.version, config.engine, config.device, threads)
    else:
        engine = Engine(model, start, trainer.version, config.engine, config.device, share=True)
    manifest = {
        "model": {"name": config.model, "path": str(model.path), "digest": trainer.version.digest},
        "task": {"mapping": tasks.mapping, "train": len(tasks.train), "held_out": len(tasks.held_out)},
        "invariance": invariance,
        "threads": torch.get_num_threads(),
    }
    history = history_for(config)
    history.add(trainer.version, start)
    return Parts(config, model, tasks, check, rewarder, engine, trainer, ParityGate(config.parity), history, manifest)


def _half_the_cores() -> int:
    """Two processes share the machine: two pools of threads on the same cores would only hinder each other."""
    return max(num_cores() // 2, 1)


def history_for(config: RunConfig) -> WeightHistory:
    """An empty history that holds as many versions as a batch can name: kept keys may be as old again as its tokens."""
    lag = config.pipeline.max_lag
    return WeightHistory(1 + (2 * lag if config.pipeline.kv == "keep" else lag))


def require_device(device: str) -> None:
    """Raise `InputError` unless torch can use it."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as cause:
        reason = str(cause).splitlines()[0]
        do = "Use device=cpu, or a torch built for the device"
        raise InputError(
            message(f"device ({device})", "torch must be able to use it", got=reason, expected="a device", do=do)
        ) from None


def _require_room(config: RunConfig, model: Model, tasks: TaskSet) -> None:
    """Refuse a task whose longest prompt leaves no room for the completion, before anything is sampled."""
    context = config.engine.max_context or model.arch.max_context
    for task in (*tasks.train, *tasks.held_out):
        length = len(model.tokenizer.encode_prompt(task.prompt))
        if length + config.sampling.max_tokens > context:
            do = "Shorten the prompt, or lower sampling.max_tokens"
            raise InputError(
                message(
                    f"task ({task.id})", "prompt and completion must fit the context", do=do,
                    got=f"{length} + {config.sampling.max_tokens} tokens", expected=f"at most {context}",
                )
            )  # fmt: skip
