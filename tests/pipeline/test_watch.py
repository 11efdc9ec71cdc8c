"""The auditor beside a run: a refused step names its cause, clean steps cost little and write nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch

from lockstep import numerics
from lockstep.core import Decision, Rollout
from lockstep.engine import draw
from lockstep.errors import GateRefused
from lockstep.kernels.sampling import Sampled, sample
from lockstep.parity.evidence import Evidence, Finding
from lockstep.pipeline.watch import with_cause
from lockstep.trace import RunDirectory

SAMPLING = {"temperature": 0.7, "max_tokens": 6}


def raw(logits_NV: torch.Tensor, *rest: Any) -> Sampled:
    """The sampler, reporting logprobs at T = 1."""
    drawn = sample(logits_NV, *rest)
    logprobs = numerics.log_softmax(logits_NV).gather(1, torch.from_numpy(drawn.token_ids)[:, None])
    return Sampled(drawn.token_ids, logprobs[:, 0].numpy(), drawn.supports)


def refused(run_loop, config, path: Path, **edit: Any) -> tuple[str, dict[str, Any]]:
    with pytest.raises(GateRefused) as failure:
        run_loop(path, config, **edit)
    (refusal,) = RunDirectory(path).refusals()
    return str(failure.value), dict(refusal.evidence)


def test_a_refused_step_names_raw_logprobs_and_the_setting(
    run_loop, tiny_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draw, "sample", raw)
    text, evidence = refused(run_loop, tiny_config(sampling=SAMPLING, max_steps=1), tmp_path / "run")
    assert "SEM01" in text
    assert "processed_logprobs" in text
    assert "Nothing was changed" in text
    audit = evidence["audit"]
    assert audit["code"] == "SEM01"
    assert audit["layer"] == "semantics"
    assert audit["evidence"][0]["explained"] == pytest.approx(1.0, abs=1e-3)
    (line,) = (tmp_path / "run" / "parity" / "findings.jsonl").read_bytes().splitlines()
    assert orjson.loads(line)["verdict"] == audit["verdict"]


def test_swapped_rows_are_not_called_semantics(run_loop, tiny_config, meddle, tmp_path: Path) -> None:
    """Two samples' logprobs change places: no reading of the logits explains that."""

    def swap(rollouts: list[Rollout]) -> list[Rollout]:
        most = max(len(r.token_ids) for r in rollouts)
        size = next(n for n in range(most, 0, -1) if sum(len(r.token_ids) == n for r in rollouts) > 1)
        a, *_, b = [i for i, r in enumerate(rollouts) if len(r.token_ids) == size]
        mine, other = rollouts[a], rollouts[b]
        rollouts[a] = replace(mine, sampler_logprobs=other.sampler_logprobs)
        rollouts[b] = replace(other, sampler_logprobs=mine.sampler_logprobs)
        return rollouts

    config = tiny_config(sampling=SAMPLING, max_steps=1)
    _, evidence = refused(run_loop, config, tmp_path / "run", edit=lambda _, running: meddle(running, swap))
    assert not str(evidence["audit"]["code"]).startswith("SEM")


def test_a_clean_run_writes_no_finding(run_loop, tiny_config, tmp_path: Path) -> None:
    summary, _ = run_loop(tmp_path / "run", tiny_config(max_steps=2))
    assert summary["outcome"] == "finished"
    assert not (tmp_path / "run" / "parity").exists()
    assert all(line["time/audit"] >= 0 for line in RunDirectory(tmp_path / "run").metrics())


@pytest.mark.parametrize("lag", [{"max_lag": 2}, {"max_lag": 2, "kv": "keep"}])
def test_staleness_that_is_accounted_for_is_no_finding(run_loop, tiny_config, tmp_path: Path, lag) -> None:
    summary, _ = run_loop(tmp_path / "run", tiny_config(max_steps=4, pipeline=lag))
    assert summary["outcome"] == "finished"
    assert not (tmp_path / "run" / "parity").exists()


def test_several_minibatches_are_no_finding(run_loop, tiny_config, tmp_path: Path) -> None:
    run_loop(tmp_path / "run", tiny_config(max_steps=2, train={"num_minibatches": 2, "checkpoint_every": 2}))
    assert not (tmp_path / "run" / "parity").exists()


def test_it_can_be_switched_off(run_loop, tiny_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw, "sample", raw)
    config = tiny_config(sampling=SAMPLING, max_steps=1, parity={"audit": False})
    text, evidence = refused(run_loop, config, tmp_path / "run")
    assert "SEM01" not in text
    assert "audit" not in evidence


def test_weights_stay_the_same_with_and_without_it(run_loop, tiny_config, tmp_path: Path) -> None:
    """It watches; it touches nothing."""
    digests = []
    for audit in (True, False):
        run_loop(tmp_path / str(audit), tiny_config(max_steps=2, parity={"audit": audit}))
        digests.append(RunDirectory(tmp_path / str(audit)).metrics()[-1]["weight_digest"])
    assert digests[0] == digests[1]


def test_the_cause_is_added_to_what_the_gate_knew() -> None:
    decision = Decision("reject", "proposal 1", "differs", {"num_differing": 3})
    finding = Finding("fault", 1, (Evidence("SEM01", "raw", 1.0),), {"tokens": 4.0, "mean": 0.5})
    told = with_cause(decision, finding)
    assert told.evidence["num_differing"] == 3
    assert told.evidence["audit"]["code"] == "SEM01"
    assert not told.admitted
    assert np.isclose(told.evidence["audit"]["figures"]["mean"], 0.5)
