"""CAC: did a row read keys that it should not have? Older ones, another request's, garbage.

In: a look. Out: evidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from lockstep.core import Path, Request
from lockstep.parity.evidence import Evidence
from lockstep.parity.hypothesis import Hypothesis, Keys
from lockstep.parity.observation import Sample
from lockstep.parity.probe import ENOUGH, Look
from lockstep.parity.probes.weights import OLDER
from lockstep.parity.side import CannotAsk

SUDDEN = 0.7
"""Part of the deviating samples that must begin right, or over keys that they found, and go wrong by themselves."""


def prefixes(look: Look) -> Sequence[Evidence]:
    """CAC01, CAC03: samples that found their prompt in the prefix cache read keys of an older version there."""
    cached = {sample.id: at for sample in look.samples if (at := _cached(look, sample))}
    if not look.deviates("sampler") or not cached:
        return ()
    settings = look.observation.engine.settings
    reset = settings.get("prefix_cache_reset")
    told = all(sample.num_cached is not None for sample in look.samples)
    found = []
    for older in _older(look):
        why = f"{len(cached)} of {len(look.samples)} samples read a cached prefix with keys of version {older}"
        why += "" if told else " (who hit the cache is not said; that all did that could is assumed)"
        keys = Keys(older=older, until=cached)
        evidence = look.evidence("CAC01", Hypothesis(keys=keys), why, figures={"cached": len(cached), "version": older})
        if evidence is None:
            continue
        if reset is not None and reset is not False:
            evidence = replace(
                evidence, code="CAC03", why=f"{evidence.why}, although the engine says of a reset: {reset}"
            )
        found.append(evidence)
    return found


def mixed(look: Look) -> Sequence[Evidence]:
    """CAC02: who was in flight at an update goes on over keys of older weights, and nobody says so."""
    boundaries: dict[int, dict[str, int]] = {}
    for sample in look.samples:
        if sample.spans or sample.versions is None or len(sample.versions) != len(sample.token_ids):
            continue
        changes = np.flatnonzero(np.diff(sample.versions))
        if changes.size:
            older = int(sample.versions[changes[0]])
            boundaries.setdefault(older, {})[sample.id] = len(sample.prompt_ids) + int(changes[0])
    if not boundaries or not look.deviates("sampler"):
        return ()
    found = []
    for older, until in boundaries.items():
        why = f"{len(until)} samples go on over keys of version {older} after the update in their middle"
        found.append(look.evidence("CAC02", Hypothesis(keys=Keys(older=older, until=until)), why))
    return [evidence for evidence in found if evidence is not None]


def strangers(look: Look) -> Sequence[Evidence]:
    """CAC04: the keys of a cached prefix are those of another prompt."""
    cached = [sample for sample in look.samples if sample.num_cached]
    if not cached or not look.deviates("sampler"):
        return ()
    far = dict(zip((sample.id for sample in look.samples), look.distance("sampler").tolist(), strict=True))
    others = _prompts(look)
    best = far.copy()
    instead: dict[str, tuple[int, ...]] = {}
    for prompt in others:
        tried = {
            sample.id: tuple(prompt[: sample.num_cached])
            for sample in cached
            if far[sample.id] > 0 and _could_be(prompt, sample)
        }
        if not tried:
            continue
        left = look.distance("sampler", look.score(Hypothesis(keys=Keys(instead=tried))))
        for sample, distance in zip(look.samples, left.tolist(), strict=True):
            if sample.id in tried and distance < best[sample.id]:
                best[sample.id], instead[sample.id] = distance, tried[sample.id]
    if not instead:
        return ()
    why = f"{len(instead)} samples read the keys of another prompt in the place of their cached prefix"
    evidence = look.evidence("CAC04", Hypothesis(keys=Keys(instead=instead)), why, figures={"samples": len(instead)})
    return [] if evidence is None else [evidence]


def garbage(look: Look) -> Sequence[Evidence]:
    """CAC05: a few samples go wrong in their middle, where nothing happened to them; alone they are right."""
    if look.subject is None or not {"sample", "seeded"} <= look.subject.can:
        raise CannotAsk("drawing again: it needs a live engine whose draws are keyed")
    far = look.distance("sampler").tolist()
    wrong = [s for s, total in zip(look.samples, far, strict=True) if total > 2 * look.grain * len(s.token_ids)]
    if not wrong or len(wrong) == len(look.samples):
        return ()
    honest = dict(zip((sample.id for sample in look.samples), look.score(), strict=True))
    starts = [_start(sample, honest[sample.id], look.grain) for sample in wrong]
    sudden = [s for s, at in zip(wrong, starts, strict=True) if (at > 0 or s.num_cached) and not _interrupted(s, at)]
    if len(sudden) < SUDDEN * len(wrong):
        return ()
    share = _alone(look, {sample.id: honest[sample.id] for sample in wrong})
    if share < ENOUGH:
        return ()
    why = (
        f"{len(wrong)} of {len(look.samples)} samples read keys that somebody wrote over, the first from token "
        f"{min(starts)} on; "
        f"drawn again one by one, {share:.0%} of it is gone"
    )
    return [Evidence("CAC05", why, share, figures={"samples": len(wrong)})]


def _cached(look: Look, sample: Sample) -> int:
    """Prompt tokens whose keys came from the cache: as said, or else the whole pages that an earlier prompt left."""
    if sample.num_cached is not None:
        return sample.num_cached
    settings = look.observation.engine.settings
    page = settings.get("block_size", settings.get("page_size"))
    earlier = [other.prompt_ids for seen in look.before for other in seen.samples]
    if not isinstance(page, int) or page < 1 or not earlier:
        return 0
    common = max(_alike(sample.prompt_ids, other) for other in earlier)
    return min(common, len(sample.prompt_ids) - 1) // page * page


def _alike(ours: np.ndarray, theirs: np.ndarray) -> int:
    """How many ids two prompts begin with alike."""
    count = min(len(ours), len(theirs))
    unlike = np.flatnonzero(ours[:count] != theirs[:count])
    return int(unlike[0]) if unlike.size else count


def _older(look: Look) -> list[int]:
    """Versions that keys may be of, the newest first; the oldest that is held, too."""
    number = look.observation.expected.number
    if look.reference is None or number is None:
        raise CannotAsk("older keys: no reference holds the weights, or the newest version is not known")
    held = [version for version in look.reference.versions if version < number][::-1]
    return held[:OLDER] + held[OLDER:][-1:]


def _prompts(look: Look) -> list[tuple[int, ...]]:
    """Every prompt of this step and of the steps before, each once."""
    seen = [look.observation, *look.before]
    return list(dict.fromkeys(tuple(s.prompt_ids.tolist()) for observation in seen for s in observation.samples))


def _could_be(prompt: Sequence[int], sample: Sample) -> bool:
    count = sample.num_cached or 0
    return len(prompt) >= count and list(prompt[:count]) != sample.prompt_ids[:count].tolist()


def _start(sample: Sample, honest: np.ndarray, grain: float) -> int:
    """The first token that is further from the honest series than noise gets."""
    assert sample.sampler is not None, "comparable"
    far = np.abs(sample.sampler.astype(np.float64) - honest)
    wrong = np.flatnonzero(far > 8 * grain)
    return int(wrong[0]) if wrong.size else 0


def _interrupted(sample: Sample, at: int) -> bool:
    """Whether something happened to the sample at this token that may itself be the cause."""
    versions = sample.versions
    changed = versions is not None and 0 < at < len(versions) and versions[at] != versions[at - 1]
    recomputed = sample.path is not None and bool((sample.path[: at + 1] == Path.RECOMPUTE).any())
    return bool(changed or recomputed)


def _alone(look: Look, honest: Mapping[str, np.ndarray]) -> float:
    """How much of the distance is gone when the requests of some samples are drawn again, one at a time."""
    assert look.subject is not None, "asked for"
    if "reset" in look.subject.can:
        look.subject.reset()  # what is cached may be the garbage itself
    requests: dict[str, Request] = {request.id: request for request in look.observation.requests}
    before = after = 0.0
    for name in dict.fromkeys(sample_id.rpartition("/")[0] for sample_id in honest):
        if name not in requests:
            continue
        for again in look.subject.sample([requests[name]]):
            old = next((sample for sample in look.samples if sample.id == again.id), None)
            if old is None or again.id not in honest or again.sampler is None or old.sampler is None:
                continue
            count = _common(old.token_ids, again.token_ids)
            before += float(np.abs(old.sampler[:count] - honest[again.id][:count]).sum())
            after += float(np.abs(again.sampler[:count] - honest[again.id][:count]).sum())
    return 1.0 - after / before if before > 0 else 0.0


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """How many first tokens agree: after another one the rest is another text."""
    count = min(len(a), len(b))
    unlike = np.flatnonzero(a[:count] != b[:count])
    return int(unlike[0]) if unlike.size else count
