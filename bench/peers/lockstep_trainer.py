"""Lockstep's loop as a contestant: `lockstep train`, held between two steps.

In: a configuration, then what pacer.py takes. Out: what it gives. A step is all that the loop does: rollout, reward,
forward and backward, parity gate, optimizer, new weights to the engine, metrics and rollouts to the disk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pacer import Pacer
from protocol import Channel

import lockstep
from lockstep.config import RunConfig, parse
from lockstep.models.checkpoint import write_model
from lockstep.pipeline import Loop, Parts, assemble
from lockstep.trace import RunDirectory

REPORTED = {
    "reward": "reward",
    "mean_tokens": "completions/mean_length",
    "grad_norm": "grad_norm",
    "parity": "parity/max",
    "rollout_seconds": "time/rollout",
    "gate_seconds": "time/parity",
}


class Held:
    """An observer that lets the loop go on when it is asked to."""

    def __init__(self, channel: Channel, pacer: Pacer) -> None:
        self._channel, self._pacer = channel, pacer

    def on_start(self, config: RunConfig, manifest: Mapping[str, Any]) -> None:
        """Nothing to wait for: an evaluation comes first."""

    def on_phase(self, name: str, done: int, total: int) -> None:
        """Nothing to wait for."""

    def on_step(self, step: int, metrics: Mapping[str, float | None]) -> None:  # noqa: ARG002
        """After the evaluation at the start, and after each step, wait for the word."""
        if "reward" in metrics:
            self._pacer.done(**{name: metrics[key] for name, key in REPORTED.items()})
        else:
            self._channel.answer(versions={"lockstep": lockstep.__version__, "torch": torch.__version__})
        self._pacer.wait()

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Nobody asks."""


def main() -> None:
    """Run until there is nothing more to do."""
    channel = Channel()
    settings = channel.asked()
    if settings is None:
        return
    config = parse(settings["config"])
    with tempfile.TemporaryDirectory(prefix="lockstep-bench-") as directory:
        parts = assemble(config)
        pacer = Pacer(channel, lambda path: _save(parts, Path(path)))
        with RunDirectory.start(Path(directory), config) as run:
            Loop(parts, run, Held(channel, pacer)).run()


def _save(parts: Parts, path: Path) -> None:
    write_model(path, parts.trainer.params, parts.model.arch, parts.model)


if __name__ == "__main__":
    main()
