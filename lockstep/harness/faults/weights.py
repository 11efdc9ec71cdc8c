"""WGT: the engine computes with other weights than the trainer thinks.

In: a laboratory. Out: the same, broken. The trainer believes that the newest weights drew everything, as trainers do
whose engine does not label tokens; what the engine says of its weights is part of each fault.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lockstep.engine import weights as engine_weights
from lockstep.harness.hooks import Published
from lockstep.harness.injection import Injection
from lockstep.harness.laboratory import Laboratory
from lockstep.harness.retold import of_version
from lockstep.models.checkpoint import digest
from lockstep.models.prepared import Prepared, head_weight
from lockstep.parity.hypothesis import Hypothesis, Weights
from lockstep.parity.observation import Sample, Statement
from lockstep.pipeline.reference import NativeReference
from lockstep.weight_update import WeightVersion


def lost(laboratory: Laboratory) -> None:
    """WGT01: updates are lost; the engine goes on with what it has, and either says so or says nothing."""
    laboratory.hooks.publish.append(lambda _: None)
    believe_newest(laboratory)
    if laboratory.setup.seed % 2:
        _says(laboratory, lambda said: replace(said, number=None, digest=None, tensors={}))


def skipped(laboratory: Laboratory) -> None:
    """WGT02: some tensors never arrive; the label is the new one. Every other engine reads its tensors back."""
    names = list(laboratory.network.model.arch.parameter_shapes())
    missing = {name for name in names if name.startswith("layers.1.")}

    def mix(published: Published) -> Published:
        old = laboratory.engine.weights.serving.params
        return forged({**published.params, **{name: old[name] for name in missing}}, published.version.number)

    laboratory.hooks.publish.append(mix)
    believe_newest(laboratory)
    _labelled(laboratory, read_back=bool(laboratory.setup.seed % 2))


def torn(laboratory: Laboratory) -> None:
    """WGT03: one forward runs while the swap is half done: the first layers are new, the others still old."""
    install = laboratory.install

    def overlapped(published: Published) -> None:
        serving = laboratory.engine.weights.serving
        names = [name for name in published.params if name == "embedding" or name.startswith("layers.0.")]
        half = {**serving.params, **{name: published.params[name] for name in names}}
        laboratory.engine.weights._current = _generation(laboratory, half, serving.version)
        laboratory.finished += laboratory.engine.step()
        laboratory.engine.weights._current = serving
        install(published)

    laboratory.patch(laboratory, "install", overlapped)


def stale_head(laboratory: Laboratory) -> None:
    """WGT04: what was made of the head for the logits' product is not made anew."""
    head = laboratory.engine.weights.serving.prepared.head
    _prepared_by(laboratory, lambda prepared: replace(prepared, head=head))
    believe_newest(laboratory)
    _labelled(laboratory, read_back=True)


def advanced_label(laboratory: Laboratory) -> None:
    """WGT05: the apply fails, and the label moves on; the digest is that of what is there."""

    def fail(published: Published) -> Published:
        return forged(laboratory.engine.weights.serving.params, published.version.number)

    laboratory.hooks.publish.append(fail)
    believe_newest(laboratory)
    _says(laboratory, lambda said: replace(said, digest=_digest(laboratory)))


def clobbered(laboratory: Laboratory) -> None:
    """WGT06: a gain that loading has folded once is folded again at every reload; digests do not cover it."""
    folds = [0]

    def fold(prepared: Prepared) -> Prepared:
        folds[0] += 1
        gain = prepared.operands["layers.0.post_norm"]
        assert isinstance(gain, Tensor), "a gain is never packed"
        return replace(prepared, operands={**prepared.operands, "layers.0.post_norm": gain * 1.25 ** folds[0]})

    _prepared_by(laboratory, fold)
    believe_newest(laboratory)
    _labelled(laboratory, read_back=True)


def masters(laboratory: Laboratory) -> None:
    """WGT07: the trainer scores with its fp32 masters what it has published in bf16."""
    arch = laboratory.network.model.arch

    def score(samples: list[Sample]) -> list[Sample]:
        held = {"masters": laboratory.trainer.optimizer.masters}
        reference = NativeReference(arch, laboratory.history, held, laboratory.setup.dtype)
        series = reference.score(samples, Hypothesis(weights=Weights(name="masters")))
        return [replace(sample, trainer=own) for sample, own in zip(samples, series, strict=True)]

    laboratory.hooks.scores.append(score)


def acknowledged(laboratory: Laboratory) -> None:
    """WGT08: the update is answered 200 OK, with the label that was sent, and nothing is transferred."""
    laboratory.hooks.publish.append(lambda _: None)
    believe_newest(laboratory)
    _labelled(laboratory, read_back=False)


def stale_scale(laboratory: Laboratory) -> None:
    """WGT09: the head is kept as scaled numbers; the numbers are new, their scale is that of an older head."""
    arch = laboratory.network.model.arch
    name = "embedding" if arch.tied else "head"
    old = float(laboratory.engine.weights.serving.params[name].abs().max())

    def fold(prepared: Prepared) -> Prepared:
        weight = prepared.head.weight_OI
        rescaled = {name: weight * (old / float(weight.abs().max()))}
        return replace(prepared, head=head_weight(rescaled, arch, laboratory.engine.config.head_dtype))

    _prepared_by(laboratory, fold)
    believe_newest(laboratory)
    _labelled(laboratory, read_back=True)


def in_place(laboratory: Laboratory) -> None:
    """WGT10: the parameters are changed, the engine computes with copies that were packed before."""
    packed = laboratory.engine.weights.serving.prepared
    _prepared_by(laboratory, lambda _: packed)
    believe_newest(laboratory)
    _labelled(laboratory, read_back=True)


def believe_newest(laboratory: Laboratory) -> None:
    """The trainer takes all tokens for those of its present weights, and tokens carry no label of their own."""
    laboratory.hooks.believed.append(lambda rollout: of_version(rollout, laboratory.trainer.version.number))
    laboratory.hooks.transport.append(lambda samples: [replace(s, versions=None, spans=()) for s in samples])


def forged(params: Mapping[str, Tensor], number: int) -> Published:
    """Weights that the engine will take for version `number`, whatever they are."""
    return Published(params, WeightVersion(number, digest(params)))


def _says(laboratory: Laboratory, change: Callable[[Statement], Statement]) -> None:
    laboratory.hooks.statement.append(change)


def _labelled(laboratory: Laboratory, *, read_back: bool) -> None:
    """The engine repeats the label that it was sent; it reads its tensors back, or not."""

    def label(said: Statement) -> Statement:
        newest = laboratory.trainer.version
        return replace(said, number=newest.number, digest=newest.digest, tensors=said.tensors if read_back else {})

    _says(laboratory, label)


def _digest(laboratory: Laboratory) -> str:
    """The digest of what serves, as the publisher would compute it."""
    dtype = getattr(torch, laboratory.setup.dtype)
    held = laboratory.engine.weights.serving.params
    return digest({name: tensor.to(dtype) for name, tensor in held.items()})


def _prepared_by(laboratory: Laboratory, change: Callable[[Prepared], Prepared]) -> None:
    """What the engine makes of weights when it takes them (the trainer makes its own)."""
    prepare = engine_weights.prepare

    def changed(*arguments: Any) -> Prepared:
        return change(prepare(*arguments))

    laboratory.patch(engine_weights, "prepare", changed)


def _generation(
    laboratory: Laboratory, params: Mapping[str, Tensor], version: WeightVersion
) -> engine_weights.Generation:
    arch, config = laboratory.network.model.arch, laboratory.engine.config
    return engine_weights.Generation(params, engine_weights.prepare(params, arch, config.head_dtype), version)


_AT_REST = {"in_flight": False}

INJECTIONS: Sequence[Injection] = (
    Injection("WGT01", lost, _AT_REST),
    Injection("WGT02", skipped, _AT_REST),
    Injection("WGT03", torn, {"in_flight": True}),
    Injection("WGT04", stale_head, _AT_REST),
    Injection("WGT05", advanced_label, _AT_REST),
    Injection("WGT06", clobbered, _AT_REST),
    Injection("WGT07", masters, {**_AT_REST, "dtype": "bfloat16", "exact": True}),
    Injection("WGT08", acknowledged, _AT_REST),
    Injection("WGT09", stale_scale, {**_AT_REST, "exact": True}),
    Injection("WGT10", in_place, _AT_REST),
)
