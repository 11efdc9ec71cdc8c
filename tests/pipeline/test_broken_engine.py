"""Break the engine on purpose, in ways that reached real runs: every time the gate refuses the first step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lockstep import numerics
from lockstep.engine import draw, weights
from lockstep.errors import GateRefused, NumericsError
from lockstep.kernels.linear import Packed
from lockstep.kernels.sampling import Sampled, sample
from lockstep.models.prepared import Prepared
from lockstep.pipeline import Loop, Parts
from lockstep.trace import RunDirectory

SAMPLING = {"temperature": 0.7, "max_tokens": 5}


def _refused(run_loop, tiny_config, path: Path, **edit: Any) -> dict[str, Any]:
    config = tiny_config(sampling=SAMPLING, max_steps=1)
    with pytest.raises(GateRefused, match="Nothing was changed"):
        run_loop(path, config, **edit)
    run = RunDirectory(path)
    assert run.metrics() == []
    (refusal,) = run.refusals()
    assert refusal.batch is not None and refusal.batch.exists()
    return dict(refusal.evidence)


@pytest.mark.parametrize("name", ["layers.1.down", "layers.0.qkv", "norm", "embedding"])
def test_one_bit_of_one_weight_of_the_engine(run_loop, tiny_config, name: str, tmp_path: Path) -> None:
    """The lowest bit of the exponent of a single bf16 weight."""

    def nudge(parts: Parts, running: Loop) -> None:
        real = running._warm_start

        def after_warm_start() -> None:
            real()
            operand = parts.engine.weights.serving.prepared.operands[name]
            tensor = operand.content if isinstance(operand, Packed) else operand
            weight = tensor.view(torch.int16).flatten().numpy()  # torch does not see it, so nobody is warned
            used = parts.model.tokenizer.encode(">")[0] if name == "embedding" else 0  # every prompt ends with it
            weight[used * parts.model.arch.hidden_size + 3] ^= 1 << 7

        running._warm_start = after_warm_start  # type: ignore[method-assign]

    evidence = _refused(run_loop, tiny_config, tmp_path / "run", edit=nudge)
    assert evidence["num_differing"] > 0
    assert evidence["first"] is not None


def test_raw_instead_of_processed_logprobs(
    run_loop, tiny_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens drawn at T = 0.7, logprobs reported at T = 1: the fault of the published migration."""

    def raw(logits_NV: torch.Tensor, *rest: Any) -> Sampled:
        drawn = sample(logits_NV, *rest)
        logprobs = numerics.log_softmax(logits_NV).gather(1, torch.from_numpy(drawn.token_ids)[:, None])
        return Sampled(drawn.token_ids, logprobs[:, 0].numpy(), drawn.supports)

    monkeypatch.setattr(draw, "sample", raw)
    evidence = _refused(run_loop, tiny_config, tmp_path / "run")
    assert evidence["num_differing"] > 0.9 * evidence["num_tokens"]


@pytest.mark.parametrize("probed", [False, True])
def test_a_stale_head_after_an_update(
    run_loop, tiny_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, probed: bool
) -> None:
    """What was made from a tied embedding survives a weight update (WGT04): the probe sees it, and so does the gate."""
    real, kept = weights.prepare, []

    def stale(*arguments: Any) -> Prepared:
        kept.append(real(*arguments))
        return replace(kept[-1], head=kept[0].head)

    monkeypatch.setattr(weights, "prepare", stale)
    if probed:
        with pytest.raises(NumericsError, match="probe token 1 must have the publisher's logprob"):
            run_loop(tmp_path / "run", tiny_config(sampling=SAMPLING, max_steps=1))
        return
    monkeypatch.setattr(weights, "require_probe", lambda *_: None)
    evidence = _refused(run_loop, tiny_config, tmp_path / "run")
    assert evidence["num_differing"] > 0


def test_switched_off_the_gate_measures_and_says_so(run_loop, tiny_config, tmp_path: Path) -> None:
    def nudge(parts: Parts, running: Loop) -> None:
        parts.engine.weights.serving.prepared.head.content[0, 7] += 0.5

    config = tiny_config(sampling=SAMPLING, max_steps=1, parity={"gate": False}, warm_start={"steps": 0})
    summary, _ = run_loop(tmp_path / "run", config, edit=nudge)
    assert summary["gated"] is False
    assert summary["parity_max"] > 0
