"""One training of the re-enactment: the library's loop, trainer and GSPO loss, on an engine behind `Settings`.

In: `Training` (what is run), the settings of its engine. Out: an `Outcome`: a line a step, evaluations, what the
auditor found, the digest of the last weights.

The words to be reversed come behind one preamble of several pages of the KV cache, as prompts of a real task come
behind theirs: that is what a prefix cache is for, and where it can go wrong. Tokens are drawn at T = 0.7, where raw and
processed logprobs are not the same, one batch ahead of the trainer, so that new weights find requests in flight.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from examples.migration.service import Apart, Service
from examples.migration.settings import Settings
from examples.migration.witness import Witness
from lockstep.config import ParityConfig, RunConfig, parse
from lockstep.engine import Engine
from lockstep.gates import ParityGate
from lockstep.parity.verdict import plain
from lockstep.pipeline import Loop, assemble
from lockstep.trace import RunDirectory

PREAMBLE = "please write the word backwards: "
LETTERS = "abcdefgh"


@dataclass(frozen=True, slots=True)
class Training:
    """What is run; the same for all arms but for `correction`, and for the settings of the engine.

    `tokens_per_step`: of the engine; with few of them prompts are read one after the other, and requests end so.
    `evaluated`: held-out words that are asked (0: all). `reward`: dotted path (empty: right or wrong).
    `audit`: whether the auditor looks at every step. `gated`: whether the parity gate may stop it. A naive engine can
    only be trained on with the gate open.
    """

    seed: int = 0
    steps: int = 100
    prompts: int = 16
    generations: int = 8
    lag: int = 2
    warm_start: int = 80
    tokens_per_step: int = 2048
    evaluate_every: int = 0
    evaluated: int = 0
    reward: str = ""
    correction: Literal["none", "sequence_tis", "geometric"] = "none"
    audit: bool = False
    gated: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it. `settings` None: on the library's own engine. `lines` are those of metrics.jsonl, `findings` the
    auditor's up to the first that names a cause."""

    settings: Settings | None
    lines: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    digest: str
    seconds: float
    gated: bool
    findings: list[dict[str, Any]] = field(default_factory=list)

    @property
    def mismatch(self) -> float:
        """The largest |log ratio| of engine and trainer at the same weights, over all tokens, in nats."""
        return max(line["parity/max"] for line in self.lines)

    @property
    def mean(self) -> float:
        """The mean of it over all tokens."""
        return sum(line["parity/mean"] * line["parity/num_tokens"] for line in self.lines) / self.tokens

    @property
    def tokens(self) -> int:
        """Tokens that were compared: all of them."""
        return sum(line["parity/num_tokens"] for line in self.lines)


def configuration(training: Training, folder: Path) -> RunConfig:
    """The resolved configuration; writes the words into `folder`, which is where the run finds them."""
    words = folder / "words.jsonl"
    if not words.exists():
        drawn = ("".join(letters) for letters in itertools.product(LETTERS, repeat=3))
        rows = ({"prompt": f"{PREAMBLE}{word}>", "answer": word[::-1]} for word in drawn)
        words.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return parse(
        {
            "model": "tiny",
            "task": {"name": str(words), "held_out": 0.25, "reward": training.reward},
            "max_steps": training.steps,
            "num_prompts_per_step": training.prompts,
            "num_generations": training.generations,
            "sampling": {"temperature": 0.7, "max_tokens": 6},
            "engine": {
                "kv_cache_gb": 0.05,
                "max_sequences": training.prompts * training.generations,
                "max_tokens_per_step": training.tokens_per_step,
            },
            "optim": {"lr": 5e-4},
            "loss": {"type": "gspo", "advantage": "leave_one_out"},
            "train": {"checkpoint_every": training.steps},
            "warm_start": {"steps": training.warm_start, "batch": 32, "lr": 1e-3},
            "parity": {"audit": False},  # the witness looks in its place, if asked to
            "pipeline": {"max_lag": training.lag, "kv": "recompute"},
            "corrections": {"type": training.correction},
            "eval": {"every": training.evaluate_every, "max_tasks": training.evaluated},
            "seed": training.seed,
            "threads": 1,
            "report_to": (),
        }
    )


def train(training: Training, settings: Settings | None, folder: Path) -> Outcome:
    """Run it in `folder`/run, which must not hold a run. Raises `GateRefused` where the gate stops it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = configuration(training, folder)
    with RunDirectory.start(folder / "run", config) as run:
        parts = assemble(config)
        assert isinstance(parts.engine, Engine), "inline"
        engine = Apart(parts.engine) if settings is None else Service(parts.engine, settings)
        parts = replace(parts, engine=engine)  # type: ignore[arg-type]
        if not training.gated:
            # The configuration has no way to correct behind an open gate, and that is right; the study is about it.
            parts = replace(parts, gate=ParityGate(ParityConfig(gate=False)))
        run.write_rollouts = lambda *_: None  # type: ignore[method-assign]  # nobody reads them, and they take a quarter
        loop = Loop(parts, run, Quiet())
        witness = Witness(parts)
        if training.audit:
            loop._watch = witness  # type: ignore[assignment]
        summary = loop.run()
        return Outcome(
            settings,
            run.metrics(),
            run.evaluations(),
            parts.trainer.version.digest,
            summary["seconds"],
            training.gated,
            [plain(finding) for finding in witness.findings],
        )


class Quiet:
    """An observer that says nothing."""

    def on_start(self, config: RunConfig, manifest: Mapping[str, Any]) -> None:
        """Nothing."""

    def on_phase(self, name: str, done: int, total: int) -> None:
        """Nothing."""

    def on_step(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Nothing."""

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Nothing."""
