"""The loop with rollouts ahead of the trainer: exact about what is stale, bounded, a function of its configuration."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep.errors import GateRefused, Interrupted
from lockstep.models.checkpoint import digest
from lockstep.pipeline import Loop, Parts
from lockstep.trace import RunDirectory
from lockstep.train.history import WeightHistory


def ahead(tiny_config, **changes: Any):
    """Two batches in hand beyond the one that is trained on, and few enough sequences at once that updates find some
    of them half done."""
    tree = {
        "max_steps": 6,
        "pipeline": {"max_lag": 2},
        "engine": {"kv_cache_gb": 0.01, "max_sequences": 14},
        "train": {"checkpoint_every": 6},
        **changes,
    }
    return tiny_config(**tree)


def bits(path: Path) -> list[tuple[Any, ...]]:
    run = RunDirectory(path)
    return [
        (r.rollout.id, r.rollout.token_ids.tobytes(), r.rollout.sampler_logprobs.values.tobytes(), r.advantage)
        for step in run.rollout_steps()
        for r in run.rollouts(step)
    ]


def digests(path: Path) -> list[str]:
    return [line["weight_digest"] for line in RunDirectory(path).metrics()]


@pytest.mark.parametrize("kv", ["keep", "salt", "recompute"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_stale_tokens_are_the_trainers_at_the_weights_that_drew_them(
    run_loop, tiny_config, tmp_path: Path, kv: str, dtype: str
) -> None:
    engine = {"kv_cache_gb": 0.01, "max_sequences": 14, "dtype": dtype}
    config = ahead(tiny_config, pipeline={"max_lag": 2, "kv": kv}, engine=engine)
    summary, _ = run_loop(tmp_path / "run", config)
    assert summary["parity_max"] == 0.0
    lines = RunDirectory(tmp_path / "run").metrics()
    assert {line["parity/frac_differing"] for line in lines} == {0.0}
    assert max(line["lag_max"] for line in lines) in (1, 2)
    assert any(line["lag"] % 1 for line in lines), "a batch with tokens of several ages"
    stale = [line for line in lines if line["lag"] > 0]
    assert stale
    assert all(line["update/mean_abs_log_ratio"] > 0 for line in stale)
    assert {line["update/mean_abs_log_ratio"] for line in lines if line["lag_max"] == 0} <= {0.0}
    mixed = [
        record.rollout
        for step in RunDirectory(tmp_path / "run").rollout_steps()
        for record in RunDirectory(tmp_path / "run").rollouts(step)
        if len(set(record.rollout.provenance.weight_version.tolist())) > 1
    ]
    assert mixed, "an update found a sequence half done"


def test_log_ratios_split_into_mismatch_and_update(run_loop, tiny_config, tmp_path: Path) -> None:
    """With the mismatch at 0, the whole ratio is the update; k3 and mean must agree between the two views of it."""
    run_loop(tmp_path / "run", ahead(tiny_config))
    for line in RunDirectory(tmp_path / "run").metrics():
        assert math.isclose(line["update/kl"], line["kl_new_old"], rel_tol=1e-9, abs_tol=1e-15)
        assert math.isclose(
            line["update/mean_abs_log_ratio"], line["mean_abs_log_ratio_new_old"], rel_tol=1e-9, abs_tol=1e-15
        )


def test_an_asynchronous_run_is_a_function_of_its_configuration(run_loop, tiny_config, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run_loop(tmp_path / name, ahead(tiny_config))
    assert bits(tmp_path / "a") == bits(tmp_path / "b")
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_evaluations_in_between_move_nothing(run_loop, tiny_config, tmp_path: Path) -> None:
    run_loop(tmp_path / "without", ahead(tiny_config))
    run_loop(tmp_path / "with", ahead(tiny_config, eval={"every": 1}))
    assert digests(tmp_path / "with") == digests(tmp_path / "without")
    assert len(RunDirectory(tmp_path / "with").evaluations()) == 7


def test_lag_zero_is_the_synchronous_loop(run_loop, tiny_config, tmp_path: Path) -> None:
    run_loop(tmp_path / "run", tiny_config())
    assert {line["lag_max"] for line in RunDirectory(tmp_path / "run").metrics()} == {0}


@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_run_that_dies_between_checkpoints_resumes_to_the_same_bits(
    run_loop, tiny_config, tmp_path: Path, at: int
) -> None:
    config = ahead(tiny_config, train={"checkpoint_every": 3})
    run_loop(tmp_path / "undisturbed", config)

    def die(parts: Parts, running: Loop) -> None:
        real = parts.trainer.step

        def step(*arguments: Any) -> Any:
            if parts.trainer.version.number == 12 + at:
                raise MemoryError("injected")
            return real(*arguments)

        parts.trainer.step = step  # type: ignore[method-assign]

    with pytest.raises(MemoryError):
        run_loop(tmp_path / "run", config, edit=die)
    run_loop(tmp_path / "run", config, resume=True)
    assert digests(tmp_path / "run") == digests(tmp_path / "undisturbed")
    assert bits(tmp_path / "run") == bits(tmp_path / "undisturbed")


def test_a_stop_between_checkpoints_goes_back_to_the_last_one(run_loop, tiny_config, tmp_path: Path) -> None:
    """What is in flight cannot be kept; so the steps that shaped it are done again, to the same bits."""
    config = ahead(tiny_config, train={"checkpoint_every": 3})
    run_loop(tmp_path / "undisturbed", config)

    def stop(parts: Parts, running: Loop) -> None:
        real = parts.engine.update_weights

        def update(*arguments: Any, **options: Any) -> None:
            real(*arguments, **options)
            running._stop.requested = parts.trainer.version.number == 12 + 4

        parts.engine.update_weights = update  # type: ignore[method-assign]

    with pytest.raises(Interrupted):
        run_loop(tmp_path / "run", config, edit=stop)
    run_loop(tmp_path / "run", config, resume=True)
    assert digests(tmp_path / "run") == digests(tmp_path / "undisturbed")


def test_a_gate_that_refuses_names_the_stale_token(run_loop, tiny_config, tmp_path: Path) -> None:
    """The history holds other weights than those that sampled: that is no honest staleness, and the gate sees it."""
    seen: dict[str, Any] = {}

    class Wrong(WeightHistory):
        def add(self, version: Any, params: Any) -> None:
            super().add(version, {name: tensor * 1.02 for name, tensor in params.items()})

    def swap_history(parts: Parts, running: Loop) -> None:
        seen["trainer"], seen["history"] = parts.trainer, Wrong(3)
        object.__setattr__(parts, "history", seen["history"])

    with pytest.raises(GateRefused, match=r"weight version 1[2-9]"):
        run_loop(tmp_path / "run", ahead(tiny_config), edit=swap_history)
    assert digest(seen["trainer"].params) == seen["trainer"].version.digest


def test_lag_is_bounded_and_logged(run_loop, tiny_config, tmp_path: Path) -> None:
    run_loop(tmp_path / "run", ahead(tiny_config, pipeline={"max_lag": 4}, max_steps=8, train={"checkpoint_every": 8}))
    run = RunDirectory(tmp_path / "run")
    for line in run.metrics():
        versions = np.concatenate([r.rollout.provenance.weight_version for r in run.rollouts(line["step"])])
        ages = line["weight_version"] - 1 - versions
        assert (ages.min(), ages.max(), ages.mean()) == (ages.min(), line["lag_max"], pytest.approx(line["lag"]))
        assert 0 <= ages.min() <= ages.max() <= 4
        assert 0 < line["ess"] <= 1
        assert line["groups/dropped"] == 0
