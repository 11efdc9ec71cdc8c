"""What the tests of the loop share: a run of the tiny model that takes a second."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lockstep.config import RunConfig, parse
from lockstep.core import Rollout
from lockstep.pipeline import Loop, Parts, assemble
from lockstep.pipeline.buffer import Group
from lockstep.trace import RunDirectory


class Recorder:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.after_step: dict[int, Callable[[], None]] = {}

    def on_start(self, config: RunConfig, manifest: Mapping[str, Any]) -> None:
        self.events.append(("start", manifest))

    def on_phase(self, name: str, done: int, total: int) -> None:
        self.events.append(("phase", (name, done, total)))

    def on_step(self, step: int, metrics: Mapping[str, float | None]) -> None:
        self.events.append(("step", step))
        if "reward" in metrics:
            self.after_step.get(step, lambda: None)()

    def on_end(self, summary: Mapping[str, Any]) -> None:
        self.events.append(("end", summary))


def _tiny_config(**changes: Any) -> RunConfig:
    """A run of 4 steps; `changes` replace whole tables or keys."""
    tree: dict[str, Any] = {
        "model": "tiny",
        "max_steps": 4,
        "num_prompts_per_step": 3,
        "num_generations": 4,
        "task": {"name": "reverse", "length": 2, "letters": 4, "held_out": 0.25},
        "sampling": {"temperature": 1.0, "max_tokens": 5},
        "engine": {"kv_cache_gb": 0.01},
        "optim": {"lr": 1e-3},
        "warm_start": {"steps": 12, "batch": 8, "lr": 3e-3},
        "train": {"checkpoint_every": 2},
    }
    return parse({**tree, **changes})


@pytest.fixture(autouse=True, scope="session")
def models_in_a_cache_of_their_own(tmp_path_factory: pytest.TempPathFactory, new_home) -> Iterator[None]:
    """The tiny model is built once, and not in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCKSTEP_HOME", str(new_home(tmp_path_factory.mktemp("home") / "cache")))
        yield


def _run_loop(
    path: Path, config: RunConfig, *, resume: bool = False, edit: Callable[[Parts, Loop], None] = lambda p, l: None
) -> tuple[dict[str, Any], Recorder]:
    """Run to the end; `edit` may break something first."""
    recorder = Recorder()
    with RunDirectory.start(path, config, resume=resume) as run:
        parts = assemble(config)
        loop = Loop(parts, run, recorder)
        edit(parts, loop)
        return loop.run(), recorder


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., RunConfig]:
    return _tiny_config


@pytest.fixture(scope="session")
def run_loop() -> Callable[..., tuple[dict[str, Any], Recorder]]:
    return _run_loop


def _meddle(running: Loop, change: Callable[[list[Rollout]], list[Rollout]]) -> None:
    """Let `change` have the rollouts of each batch before the trainer sees them."""
    sampling = running._sampling
    collect, size = sampling.collect, sampling.buffer.size

    def changed(*arguments: Any) -> tuple[Group, ...]:
        groups = collect(*arguments)
        rollouts = change([rollout for group in groups for rollout in group.rollouts])
        return tuple(replace(g, rollouts=tuple(rollouts[i * size : (i + 1) * size])) for i, g in enumerate(groups))

    sampling.collect = changed  # type: ignore[method-assign]


@pytest.fixture(scope="session")
def meddle() -> Callable[[Loop, Callable[[list[Rollout]], list[Rollout]]], None]:
    return _meddle
