"""WGT: does the engine compute with the weights that the trainer published? Older ones, parts of older ones, the label.

In: a look. Out: evidence. What the engine says of its weights tells causes apart that have the same effect.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from lockstep.parity.evidence import Evidence
from lockstep.parity.hypothesis import Hypothesis, Reading, Weights
from lockstep.parity.observation import Observation, Sample
from lockstep.parity.probe import ENOUGH, Look
from lockstep.parity.side import CannotAsk

HEAD = frozenset({"head"})
OLDER = 3
"""Versions before the present one that are tried."""

FITTED = 0.8
"""What a hypothesis with a fitted number must explain: a number can always be found that explains a little."""


def label(look: Look) -> Sequence[Evidence]:
    """WGT05: number and digest of the engine's label contradict each other."""
    said, expected = look.observation.engine, look.observation.expected
    if None in (said.number, said.digest, expected.number, expected.digest):
        return ()
    if said.number != expected.number or said.digest == expected.digest:
        return ()
    if newer(look.observation):
        return ()  # tensors were read back; they say more than a digest
    why = (
        f"the engine says version {said.number} with digest {str(said.digest)[:12]}, "
        f"which was published with digest {str(expected.digest)[:12]}"
    )
    return [Evidence("WGT05", why, certain=True, figures={"number": said.number, "digest": said.digest})]


def tensors(look: Look) -> Sequence[Evidence]:
    """WGT02: some tensors, read back from the engine, are not the trainer's; the others are."""
    mine, theirs = look.observation.engine.tensors, look.observation.trainer.tensors
    common = [name for name in theirs if name in mine]
    stale = [name for name in common if mine[name] != theirs[name]]
    if not stale or len(stale) == len(common) or not _claims_newest(look.observation):
        return ()
    why = f"{len(stale)} of {len(common)} tensors that the engine holds are not the published ones ({stale[0]}, ...)"
    return [Evidence("WGT02", why, certain=True, figures={"tensors": stale})]


def versions(look: Look) -> Sequence[Evidence]:
    """WGT01, WGT05, WGT08, WGT10: all weights are those of an older version; WGT04, WGT02: some of them are."""
    if not look.deviates("sampler"):
        return ()
    found: list[Evidence] = []
    for older in _older(look):
        why = f"the engine computes with the weights of version {older}"
        whole = look.evidence("WGT01", Hypothesis(weights=Weights(version=older)), why, figures={"version": older})
        if whole is not None:
            found.append(replace(whole, code=_lost_how(look), why=f"{whole.why}; {_said(look.observation)}"))
        head = Hypothesis(weights=Weights(stale=HEAD, older=older))
        why = f"the weight of the logits' product is that of version {older}, all others are right"
        stale = look.evidence("WGT04", head, why, figures={"version": older})
        if stale is not None:
            found.append(stale)
        if max((e.explained for e in found), default=0.0) < FITTED:
            found += _some(look, older)
    return found


def scale(look: Look) -> Sequence[Evidence]:
    """WGT09: all logits are scaled by one factor."""
    if not look.deviates("sampler"):
        return ()
    factor, share = _fit(look)
    if share < FITTED or abs(factor - 1.0) < 1e-4:
        return ()
    why = f"the engine's logits are the reference's times {factor:.4f}"
    evidence = look.evidence("WGT09", Hypothesis(Reading(scale=factor)), why, figures={"factor": factor})
    return [] if evidence is None else [evidence]


def masters(look: Look) -> Sequence[Evidence]:
    """WGT07: the trainer scores with fp32 weights that it has published rounded."""
    if look.reference is None or "masters" not in look.reference.names:
        raise CannotAsk("masters: the trainer's fp32 weights were not given")
    if not look.deviates("trainer"):
        return ()
    why = "the trainer's own forward uses its fp32 masters, the engine what was published"
    evidence = look.evidence("WGT07", Hypothesis(weights=Weights(name="masters")), why, "trainer")
    number = look.observation.trainer.number
    if evidence is None or number is None or look.reference is None or number not in look.reference.versions:
        return [] if evidence is None else [evidence]
    published = look.explained(Hypothesis(weights=Weights(version=number)), "trainer")
    return [evidence] if evidence.explained > published else []


def torn(look: Look) -> Sequence[Evidence]:
    """WGT03: one forward, where the version changes, ran with new weights in the first layers and old ones after."""
    cuts = dict(_boundaries(look.samples))
    if not look.deviates("sampler") or not cuts or look.reference is None:
        return ()
    told = [sample.versions for sample in look.samples if sample.versions is not None and len(sample.versions)]
    newest = max(int(versions.max()) for versions in told)
    best: Evidence | None = None
    for stale, first in _tails(look.reference.parameters):
        for late in (0, 1):
            rows = {name: (at - 1 + late, at + late) for name, at in cuts.items()}
            weights = Weights(version=newest, stale=stale, older=newest - 1, rows=rows)
            why = f"the forward at the update ran with version {newest} up to {first} and {newest - 1} from there on"
            found = look.evidence("WGT03", Hypothesis(weights=weights), why, figures={"from": first})
            best = max((e for e in (best, found) if e), key=lambda e: e.explained, default=None)
    return [] if best is None else [best]


def identity(look: Look) -> Sequence[Evidence]:
    """WGT06: the same weights once more, and the engine says something else. An experiment."""
    number = look.observation.expected.number
    if look.subject is None or not {"update", "score"} <= look.subject.can or number is None:
        raise CannotAsk("identity update: it needs a live engine that takes weights and scores tokens")
    if not look.deviates("sampler"):
        return ()
    some = look.samples[:4]
    before = look.subject.score(some)
    look.subject.update(number)
    after = look.subject.score(some)
    moved = float(np.mean([np.abs(a - b).mean() for a, b in zip(after, before, strict=True)]))
    if not moved > 2 * look.grain:
        return ()
    why = f"installing version {number} once more moves its logprobs by {moved:.3g} nats a token"
    return [Evidence("WGT06", why, certain=True, figures={"moved": moved})]


def newer(observation: Observation) -> bool:
    """Whether every tensor that was read back from the engine is the trainer's."""
    mine, theirs = observation.engine.tensors, observation.trainer.tensors
    return bool(mine) and all(mine.get(name) == digest for name, digest in theirs.items())


def _claims_newest(observation: Observation) -> bool:
    said, expected = observation.engine.number, observation.expected.number
    return said is None or said == expected


def _lost_how(look: Look) -> str:
    """Which fault it is that everything computes as before."""
    said, expected = look.observation.engine, look.observation.expected
    if newer(look.observation):
        return "WGT10"
    if said.number is None or said.number != expected.number:
        return "WGT01"
    return "WGT08" if said.digest in (None, expected.digest) else "WGT05"


def _said(observation: Observation) -> str:
    said = observation.engine
    if said.number is None:
        return "it says nothing of its version"
    held = " and holds the published tensors" if newer(observation) else ""
    return f"it says version {said.number}{held}, published was {observation.expected.number}"


def _older(look: Look) -> list[int]:
    """Versions to try, the newest first."""
    number = look.observation.expected.number
    if look.reference is None or number is None:
        raise CannotAsk("older weights: no reference holds them, or the newest version is not known")
    held = [version for version in look.reference.versions if version < number]
    return held[::-1][:OLDER]


def _some(look: Look, older: int) -> list[Evidence]:
    """The set of layers (and what is outside of them) that is stale: those that help alone, then together."""
    assert look.reference is not None, "versions are tried with one"
    groups: dict[str, list[str]] = {}
    for name in look.reference.parameters:
        parts = name.split(".")
        groups.setdefault(".".join(parts[:2]) if parts[0] == "layers" else name, []).append(name)
    chosen: list[str] = []
    share = 0.0
    for names in groups.values():
        tried = frozenset([*chosen, *names])
        with_it = look.explained(Hypothesis(weights=Weights(stale=tried, older=older)))
        if with_it > share + 0.02:
            chosen, share = [*chosen, *names], with_it
    if share < ENOUGH or len(chosen) == len(look.reference.parameters):
        return []
    why = f"{len(chosen)} tensors are those of version {older} ({chosen[0]}, ...), the others are new"
    hypothesis = Hypothesis(weights=Weights(stale=frozenset(chosen), older=older))
    evidence = look.evidence("WGT02", hypothesis, why, figures={"tensors": chosen})
    return [] if evidence is None else [evidence]


def _fit(look: Look) -> tuple[float, float]:
    """The factor on the logits that explains most, and how much: a golden-section search between 1/2 and 2."""
    golden = (5**0.5 - 1) / 2
    low, high = -np.log(2.0), np.log(2.0)

    def share(at: float) -> float:
        return look.explained(Hypothesis(Reading(scale=float(np.exp(at)))))

    a, b = high - golden * (high - low), low + golden * (high - low)
    at_a, at_b = share(a), share(b)
    for _ in range(16):
        if at_a >= at_b:
            high, b, at_b = b, a, at_a
            a = high - golden * (high - low)
            at_a = share(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + golden * (high - low)
            at_b = share(b)
    return (float(np.exp(a)), at_a) if at_a >= at_b else (float(np.exp(b)), at_b)


def _boundaries(samples: Sequence[Sample]) -> Iterator[tuple[str, int]]:
    """Id and row that decided the first token of a newer version, for samples that say so."""
    for sample in samples:
        if sample.versions is not None and len(sample.versions) == len(sample.token_ids):
            changes = np.flatnonzero(np.diff(sample.versions))
            if changes.size:
                yield sample.id, len(sample.prompt_ids) + int(changes[0])


def _tails(parameters: Sequence[str]) -> Iterator[tuple[frozenset[str], str]]:
    """What is still old when the first layers are new, for each layer; and the name of where it begins."""
    layers = list(dict.fromkeys(name.split(".")[1] for name in parameters if name.startswith("layers.")))
    outside = [name for name in parameters if not name.startswith("layers.") and name != "embedding"]
    for layer in layers[1:]:
        rest = layers[layers.index(layer) :]
        stale = [n for n in parameters if n.startswith("layers.") and n.split(".")[1] in rest]
        yield frozenset([*stale, *outside, "head"]), f"layer {layer}"
