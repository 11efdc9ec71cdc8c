"""NUM: the same formula, other rounding, on one side.

In: a laboratory. Out: the same, broken. Functions of the model definition are replaced for the time of the engine's own
forward; the trainer, which uses the same definition, never sees it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lockstep.engine import forward
from lockstep.engine import weights as engine_weights
from lockstep.harness.injection import Injection
from lockstep.harness.laboratory import Laboratory
from lockstep.models import decoder
from lockstep.parity.observation import Sample, Statement

LEVELS = 127
"""Of int8 numbers, either side of 0."""


def narrow_head(laboratory: Laboratory) -> None:
    """NUM01: the engine's logits are a bf16 product, as its settings say; the trainer's are fp32."""
    _with_narrow_head(laboratory, "bfloat16")


def silently_narrow_head(laboratory: Laboratory) -> None:
    """NUM02: the engine says that its head is fp32."""
    _with_narrow_head(laboratory, "float32")


def narrow_rope(laboratory: Laboratory) -> None:
    """NUM03: the engine's rotary angles are bf16."""
    rotation = decoder.rotation

    def rounded(*arguments: Any) -> tuple[Tensor, Tensor]:
        cos, sin = rotation(*arguments)
        return cos.bfloat16().to(cos.dtype), sin.bfloat16().to(sin.dtype)

    _in_the_engine(laboratory, {"rotation": rounded})


def narrow_norm(laboratory: Laboratory) -> None:
    """NUM04: every result within the engine's norms is rounded to bf16."""

    def norm(x_TE: Tensor, gain_E: Tensor, eps: float) -> Tensor:
        narrow = x_TE.bfloat16()
        mean = (narrow * narrow).float().mean(-1, keepdim=True).bfloat16()
        return (narrow * torch.rsqrt((mean + eps).float()).bfloat16() * gain_E.bfloat16()).to(x_TE.dtype)

    def add_norm(x_TE: Tensor, delta_TE: Tensor, gain_E: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        total = x_TE + delta_TE
        return total, norm(total, gain_E, eps)

    _in_the_engine(laboratory, {"rms_norm": norm, "add_rms_norm": add_norm})


def quantised(laboratory: Laboratory) -> None:
    """NUM05: keys and values of the engine are int8, or (every other seed) its weights are."""
    if laboratory.setup.seed % 2:
        prepare = engine_weights.prepare

        def prepared(params: dict[str, Tensor], *rest: Any) -> Any:
            return prepare({name: int8(p) if p.dim() == 2 else p for name, p in params.items()}, *rest)

        laboratory.patch(engine_weights, "prepare", prepared)
        laboratory.reinstall(laboratory.engine.version.number)
        return
    write = decoder.write_kv

    def narrow(cache: tuple[Tensor, Tensor], k_TKD: Tensor, v_TKD: Tensor, slots_T: Tensor) -> None:
        write(cache, int8(k_TKD), int8(v_TKD), slots_T)

    _in_the_engine(laboratory, {"write_kv": narrow})


def other_microbatches(laboratory: Laboratory) -> None:
    """NUM06: the trainer's scoring pass and its train pass are cut otherwise, and its products depend on that."""

    def score(samples: list[Sample]) -> list[Sample]:
        scored = []
        for i, sample in enumerate(samples):
            assert sample.trainer is not None, "the laboratory scores everything"
            wide = torch.from_numpy(sample.trainer).double()
            rows = torch.arange(len(wide), dtype=torch.float64)
            # A sum of another order moves the last bits; which ones depends on the place in the microbatch.
            moved = wide * (1.0 + 2.0**-22 * torch.cos(rows + i))
            scored.append(replace(sample, again=moved.float().numpy()))
        return scored

    laboratory.hooks.scores.append(score)


def int8(values: Tensor) -> Tensor:
    """Symmetric int8 and back, one scale for each row of the last dimension."""
    scale = (values.float().abs().amax(-1, keepdim=True) / LEVELS).clamp(min=1e-9)
    return ((values.float() / scale).round() * scale).to(values.dtype)


def _with_narrow_head(laboratory: Laboratory, said: str) -> None:
    laboratory.engine.weights._head_dtype = "model"
    laboratory.reinstall(laboratory.engine.version.number)

    def say(statement: Statement) -> Statement:
        return replace(statement, settings={**statement.settings, "head_dtype": said})

    laboratory.hooks.statement.append(say)


def _in_the_engine(laboratory: Laboratory, functions: dict[str, Any]) -> None:
    """Replace functions of the model definition whenever the engine runs a forward, layer by layer."""
    run = forward.paged_hidden_states

    def engines_own(*arguments: Any) -> Tensor:
        changed = {**functions, "operators_for": lambda *_: None}  # the whole forward in C++ has its own copies
        before = {name: getattr(decoder, name) for name in changed}
        try:
            for name, value in changed.items():
                setattr(decoder, name, value)
            return run(*arguments)
        finally:
            for name, value in before.items():
                setattr(decoder, name, value)

    laboratory.patch(forward, "paged_hidden_states", engines_own)


_BF16 = {"exact": True, "dtype": "bfloat16"}

INJECTIONS: Sequence[Injection] = (
    Injection("NUM01", narrow_head, _BF16),
    Injection("NUM02", silently_narrow_head, _BF16),
    Injection("NUM03", narrow_rope, {"exact": True}),
    Injection("NUM04", narrow_norm, {"exact": True}),
    Injection("NUM05", quantised, {"exact": True}),
    Injection("NUM06", other_microbatches, {"exact": True}),
)
