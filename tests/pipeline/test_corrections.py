"""Corrections in the loop: they come after the gate, leave fresh rollouts alone, and change no bit when off."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lockstep.core import Rollout
from lockstep.errors import GateRefused
from lockstep.models.checkpoint import digest
from lockstep.pipeline import Loop, Parts
from lockstep.trace import RunDirectory
from lockstep.train import Batch, trainer
from lockstep.train.corrections import CORRECTIONS
from lockstep.train.losses import LOSSES
from lockstep.train.policy_loss import PolicyLoss

TYPES = sorted(CORRECTIONS)
MINIBATCHES = {"num_minibatches": 2, "max_tokens_per_microbatch": 24, "checkpoint_every": 2}
VARYING = ("time/", "throughput/", "memory/", "corrections/")


def _run(run_loop, path: Path, config: Any) -> tuple[str, list[dict[str, Any]]]:
    """Digest of the last weights, and the lines without times and without the ledger."""
    last: list[str] = []
    run_loop(path, config, edit=lambda parts, loop: last.append(parts.trainer) or None)  # type: ignore[func-returns-value]
    lines = [
        {name: value for name, value in line.items() if not name.startswith(VARYING)}
        for line in RunDirectory(path).metrics()
    ]
    return digest(last[0].params), lines  # type: ignore[attr-defined]


@pytest.fixture(scope="module", params=[1, 2])
def uncorrected(request, run_loop, tiny_config, tmp_path_factory: pytest.TempPathFactory):
    """A run without corrections: its number of minibatches, its weights, its lines."""
    train = {**MINIBATCHES, "num_minibatches": request.param}
    path = tmp_path_factory.mktemp("plain") / "run"
    return train, *_run(run_loop, path, tiny_config(train=train, max_steps=2))


def test_switched_off_the_weights_are_those_of_the_objective_alone(
    uncorrected, run_loop, tiny_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss as it was before there were corrections, written out here, ends with the same digest."""

    def alone(microbatch: Any, logprobs_N: torch.Tensor, config: Any) -> PolicyLoss:
        inputs = (microbatch.sampler_logprobs_N, microbatch.advantages_N, microbatch.packed.sequence_N)
        found = LOSSES[config.loss.type](logprobs_N, *inputs, microbatch.weights_N, config.loss)
        return PolicyLoss(found.loss, found.clipped_N, None)

    monkeypatch.setattr(trainer, "policy_loss", alone)
    train, weights, lines = uncorrected
    assert _run(run_loop, tmp_path / "run", tiny_config(train=train, max_steps=2)) == (weights, lines)


@pytest.mark.parametrize("kind", TYPES)
def test_fresh_rollouts_are_left_as_they_are(uncorrected, run_loop, tiny_config, kind: str, tmp_path: Path) -> None:
    """With parity, nothing is stale here: every weight is exactly 1, and the run ends with the same weights."""
    train, weights, lines = uncorrected
    config = tiny_config(train=train, max_steps=2, corrections={"type": kind, "low": 1.0, "high": 1.0})
    assert _run(run_loop, tmp_path / "run", config) == (weights, lines)
    for line in RunDirectory(tmp_path / "run").metrics():
        assert line["corrections/mean_weight"] == line["corrections/ess_after"] == 1.0
        assert line["corrections/frac_removed"] == line["corrections/frac_capped"] == 0.0
        kept = sum(line[f"corrections/kept_{sign}"] for sign in ("negative", "zero", "positive"))
        assert kept == line["parity/num_tokens"], "the ledger has every token of every minibatch"


def test_without_a_correction_there_is_no_ledger(run_loop, tiny_config, tmp_path: Path) -> None:
    run_loop(tmp_path / "run", tiny_config(max_steps=1))
    (line,) = RunDirectory(tmp_path / "run").metrics()
    assert not [name for name in line if name.startswith("corrections/")]


@pytest.mark.parametrize("kind", TYPES)
def test_the_gate_comes_before_the_correction(run_loop, tiny_config, meddle, kind: str, tmp_path: Path) -> None:
    """A correction that would remove every differing token does not get the batch past the gate."""
    seen: dict[str, Any] = {}

    def shift(parts: Parts, running: Loop) -> None:
        def shifted(rollouts: list[Rollout]) -> list[Rollout]:
            seen["trainer"], seen["before"] = parts.trainer, parts.trainer.version
            old = rollouts[3].sampler_logprobs
            moved = replace(rollouts[3], sampler_logprobs=replace(old, values=old.values - 3))
            return [*rollouts[:3], moved, *rollouts[4:]]

        meddle(running, shifted)

    config = tiny_config(max_steps=1, corrections={"type": kind, "low": 0.9, "high": 1.1, "cap": 1.0})
    with pytest.raises(GateRefused, match=r"parity gate \(step 1\)"):
        run_loop(tmp_path / "run", config, edit=shift)
    assert RunDirectory(tmp_path / "run").metrics() == []
    assert seen["trainer"].version == seen["before"]
    assert digest(seen["trainer"].params) == seen["before"].digest


def test_the_ledger_of_a_step_is_of_all_its_minibatches(run_loop, tiny_config, tmp_path: Path) -> None:
    """Anchors are the logprobs from before the step; so the second minibatch is not taken for stale."""
    found: dict[str, Any] = {}

    def watch(parts: Parts, running: Loop) -> None:
        propose = parts.trainer.propose

        def watched(batch: Batch) -> Any:
            found.setdefault("anchors", []).append((batch.anchor, parts.trainer.score(batch.rollouts)))
            return propose(batch)

        parts.trainer.propose = watched  # type: ignore[method-assign]

    config = tiny_config(max_steps=1, corrections={"type": "token_tis"}, train=MINIBATCHES)
    run_loop(tmp_path / "run", config, edit=watch)
    (first, at_first), (second, at_second) = found["anchors"]
    assert [p.values.tobytes() for p in first] == [p.values.tobytes() for p in at_first]
    assert [p.values.tobytes() for p in second] != [p.values.tobytes() for p in at_second], "the first step moved them"
    (line,) = RunDirectory(tmp_path / "run").metrics()
    assert line["mean_abs_log_ratio_new_old"] > 0
    assert line["corrections/mean_weight"] == 1.0
