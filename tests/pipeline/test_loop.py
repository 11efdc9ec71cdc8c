"""The loop end to end on the tiny model: parity on every line, the same bits again, and after every kind of stop."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lockstep import models
from lockstep.core import Logprobs, Rollout
from lockstep.errors import GateRefused, Interrupted, NumericsError, StorageError
from lockstep.models.checkpoint import digest, read_parameters
from lockstep.pipeline import Loop, Parts, loop
from lockstep.trace import RunDirectory
from lockstep.train import losses


def weights_digest(run: Path, step: int) -> str:
    directory = run / "weights" / f"step_{step}"
    arch = models.load(str(directory)).arch
    return digest(read_parameters(directory, arch, torch.bfloat16))


@pytest.fixture(scope="module")
def undisturbed(run_loop, tiny_config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stops."""
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    run_loop(path, tiny_config())
    return path


def test_every_step_is_compared_and_equal(undisturbed: Path) -> None:
    run = RunDirectory(undisturbed)
    lines = run.metrics()
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert line["parity/max"] == 0.0
        assert line["parity/frac_differing"] == 0
        assert line["parity/num_tokens"] == sum(len(r.rollout.token_ids) for r in run.rollouts(int(line["step"])))
        assert line["ratio_new_old"] == 1.0
    assert run.manifest()["outcome"] == "finished"
    assert run.manifest()["invariance"]


def test_the_rollouts_on_disk_hold_what_was_compared(undisturbed: Path) -> None:
    for record in RunDirectory(undisturbed).rollouts(3):
        assert record.trainer_logprobs is not None
        mine, theirs = record.trainer_logprobs.values, record.rollout.sampler_logprobs.values
        assert np.array_equal(mine.view(np.int32), theirs.view(np.int32))
        assert set(record.rollout.provenance.weight_version) == {12 + 2}  # 12 supervised updates, then 2 of RL
        assert record.verdict is not None
        assert record.reward is not None and record.reward.value in (0.0, 1.0)


def test_the_policy_changes_and_groups_are_of_one_prompt(undisturbed: Path) -> None:
    records = RunDirectory(undisturbed).rollouts(1)
    assert [r.rollout.id for r in records] == [f"1/{i}/{j}" for i in range(3) for j in range(4)]
    assert [len({r.prompt for r in records[i : i + 4]}) for i in range(0, 12, 4)] == [1, 1, 1]
    assert sum(abs(r.advantage or 0.0) for r in records) > 0, "the fixture carries a signal"
    assert weights_digest(undisturbed, 4) != models_before(undisturbed)


def models_before(run: Path) -> str:
    return RunDirectory(run).manifest()["model"]["digest"]


def test_the_same_seed_gives_the_same_weights_and_another_does_not(
    run_loop, tiny_config, undisturbed: Path, tmp_path: Path
) -> None:
    run_loop(tmp_path / "again", tiny_config(train={"checkpoint_every": 4}))
    run_loop(tmp_path / "other", tiny_config(seed=1))
    assert weights_digest(tmp_path / "again", 4) == weights_digest(undisturbed, 4)
    assert weights_digest(tmp_path / "other", 4) != weights_digest(undisturbed, 4)


def test_page_size_chunks_and_microbatches_change_no_weight_of_the_first_step(
    run_loop, tiny_config, tmp_path: Path
) -> None:
    """Microbatches change the order of sums, so weights may differ in late bits; what was sampled may not."""
    plans = {
        "a": {},
        "b": {"engine": {"kv_cache_gb": 0.01, "page_size": 32, "max_tokens_per_step": 8, "max_sequences": 4}},
    }
    for name, plan in plans.items():
        run_loop(tmp_path / name, tiny_config(**plan))
    assert weights_digest(tmp_path / "a", 4) == weights_digest(tmp_path / "b", 4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    "sampling", [{"temperature": 0.7}, {"temperature": 1.3, "top_p": 0.8}, {"top_k": 5, "min_p": 0.02}]
)
def test_parity_holds_for_every_way_of_sampling(
    run_loop, tiny_config, dtype: str, sampling: dict[str, Any], tmp_path: Path
) -> None:
    config = tiny_config(
        sampling={"max_tokens": 5, **sampling},
        engine={"kv_cache_gb": 0.01, "dtype": dtype},
        max_steps=2,
    )
    run_loop(tmp_path / "run", config)
    assert [line["parity/frac_differing"] for line in RunDirectory(tmp_path / "run").metrics()] == [0, 0]


@pytest.mark.parametrize("kind", ["gspo", "cispo", "ppo", "reinforce"])
def test_every_objective_runs_with_minibatches_and_a_reference(
    run_loop, tiny_config, kind: str, tmp_path: Path
) -> None:
    config = tiny_config(
        loss={"type": kind, "beta": 0.02, "normalize": "sequence", "advantage": "leave_one_out"},
        train={"num_minibatches": 2, "max_tokens_per_microbatch": 24},
        max_steps=3,
    )
    run_loop(tmp_path / "run", config)
    lines = RunDirectory(tmp_path / "run").metrics()
    assert all(line["parity/frac_differing"] == 0 for line in lines)
    assert lines[-1]["kl"] > 0
    assert any(line["mean_abs_log_ratio_new_old"] > 0 for line in lines), "a second minibatch is off-policy"
    assert lines[-1]["weight_version"] == 12 + 2 * 3


def test_a_stop_request_ends_at_a_whole_step_and_resumes_to_the_same_weights(
    run_loop, tiny_config, undisturbed: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run"

    def stop_after_three(parts: Parts, running: Loop) -> None:
        watcher: Any = running._observer
        watcher.after_step[3] = lambda: setattr(running._stop, "requested", True)

    with pytest.raises(Interrupted, match="step in progress was dropped"):
        run_loop(path, tiny_config(), edit=stop_after_three)
    run = RunDirectory(path)
    run.check()
    assert [line["step"] for line in run.metrics()] == [1, 2, 3]
    assert run.manifest()["outcome"] == "interrupted"
    assert (path / "checkpoints" / "step_3").is_dir()
    summary, _ = run_loop(path, tiny_config(), resume=True)
    assert summary["steps"] == 4
    assert weights_digest(path, 4) == weights_digest(undisturbed, 4)


@pytest.mark.parametrize("at", [0, 3, 4])
def test_a_stop_in_an_evaluation_loses_no_step_and_the_evaluation_is_made_up_for(
    at: int, run_loop, tiny_config, tmp_path: Path
) -> None:
    path, config = tmp_path / "run", tiny_config(eval={"every": 3}, train={"checkpoint_every": 50})

    def stop_in_the_evaluation(parts: Parts, running: Loop) -> None:
        evaluate = running._evaluate

        def stopped() -> None:
            running._stop.requested = running._done == at
            evaluate()

        running._evaluate = stopped  # type: ignore[method-assign]

    with pytest.raises(Interrupted):
        run_loop(path, config, edit=stop_in_the_evaluation)
    assert [line["step"] for line in RunDirectory(path).metrics()] == list(range(1, at + 1))
    _, seen = run_loop(path, config, resume=True)
    assert [line["step"] for line in RunDirectory(path).evaluations()] == [0, 3, 4]
    trained = [number for kind, number in seen.events if kind == "step" and number > at]
    assert sorted(set(trained)) == list(range(at + 1, 5)), "steps before the stop are not done again"


def test_steps_after_the_last_checkpoint_are_done_again_to_the_same_bits(
    run_loop, tiny_config, undisturbed: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run"

    def die_after_three(parts: Parts, running: Loop) -> None:
        watcher: Any = running._observer
        watcher.after_step[3] = lambda: (_ for _ in ()).throw(ZeroDivisionError("as if the power failed"))

    with pytest.raises(ZeroDivisionError):
        run_loop(path, tiny_config(), edit=die_after_three)
    assert RunDirectory(path).manifest()["outcome"] == "failed"
    _, seen = run_loop(path, tiny_config(), resume=True)
    assert [number for kind, number in seen.events if kind == "step"] == [3, 4, 4]  # 4 twice: the evaluation
    assert weights_digest(path, 4) == weights_digest(undisturbed, 4)
    ours, theirs = (_without_times(run) for run in (path, undisturbed))
    assert ours == theirs


def _without_times(run: Path) -> list[dict[str, Any]]:
    varying = ("time/", "throughput/", "memory/")
    return [{k: v for k, v in line.items() if not k.startswith(varying)} for line in RunDirectory(run).metrics()]


def test_a_refused_step_changes_nothing_and_keeps_its_batch(run_loop, tiny_config, meddle, tmp_path: Path) -> None:
    path = tmp_path / "run"
    before: dict[str, str] = {}

    def shift_one_token(parts: Parts, running: Loop) -> None:
        def shifted(rollouts: list[Rollout]) -> list[Rollout]:
            if parts.trainer.version.number < 12 + 2:
                return rollouts
            before["digest"] = parts.trainer.version.digest
            old = rollouts[5].sampler_logprobs
            rolled = Logprobs(np.roll(old.values, 1), old.contract)
            return [*rollouts[:5], replace(rollouts[5], sampler_logprobs=rolled), *rollouts[6:]]

        meddle(running, shifted)

    with pytest.raises(GateRefused, match=r"parity gate \(step 3\).*3/1/1"):
        run_loop(path, tiny_config(), edit=shift_one_token)
    run = RunDirectory(path)
    assert [line["step"] for line in run.metrics()] == [1, 2]
    assert run.manifest()["outcome"] == "refused"
    (refusal,) = run.refusals()
    assert refusal.step == 3
    assert refusal.batch is not None
    assert refusal.evidence["first"]["rollout_id"] == "3/1/1"
    resumed = run_loop(path, tiny_config(), resume=True)[0]
    assert resumed["outcome"] == "finished", "the fault was not in the run's own state"


def test_a_loss_that_is_not_finite_stops_the_run_resumable(
    run_loop, tiny_config, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "run", losses.LOSSES["grpo"]
    calls = iter(range(100))
    with monkeypatch.context() as patch:

        def sometimes_nan(*inputs: Any) -> losses.LossOutput:
            out = real(*inputs)
            return losses.LossOutput(out.loss * float("nan"), out.clipped_N) if next(calls) >= 3 else out

        patch.setitem(losses.LOSSES, "grpo", sometimes_nan)
        with pytest.raises(NumericsError, match="loss"):
            run_loop(path, tiny_config())
    run_loop(path, tiny_config(), resume=True)
    assert weights_digest(path, 4) == weights_digest(undisturbed, 4)


def test_a_full_disk_while_checkpointing_keeps_the_older_checkpoint(
    run_loop, tiny_config, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "run", loop.checkpoint.save

    def full(directory: Path, trainer: Any, step: int, extra: Any) -> Path:
        if step == 4:
            raise StorageError("storage (checkpoint): it must be written whole - got no space left, expected room. Do.")
        return real(directory, trainer, step, extra)

    with monkeypatch.context() as patch:
        patch.setattr(loop.checkpoint, "save", full)
        with pytest.raises(StorageError):
            run_loop(path, tiny_config())
    assert sorted(p.name for p in (path / "checkpoints").iterdir()) == ["step_2"]
    run_loop(path, tiny_config(), resume=True)
    assert weights_digest(path, 4) == weights_digest(undisturbed, 4)


def test_the_observer_is_told_in_order_and_the_summary_is_json(run_loop, tiny_config, tmp_path: Path) -> None:
    summary, seen = run_loop(tmp_path / "run", tiny_config(max_steps=2))
    kinds = [kind for kind, _ in seen.events]
    assert kinds[0] == "start" and kinds[-1] == "end" and kinds.count("end") == 1
    assert seen.events[-1][1] == summary == json.loads(json.dumps(summary))
    assert summary["parity_max"] == 0.0 and summary["parity_tokens"] > 0
    phases = {value[0] for kind, value in seen.events if kind == "phase"}
    assert phases == {"warm start", "eval", "rollout"}
