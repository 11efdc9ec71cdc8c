"""DAT: do the two sides speak of the same tokens? Counts, ids, other samples' series, other prompts.

In: a look. Out: evidence. Most of it needs no reference: what was recorded contradicts itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from lockstep.parity.evidence import Evidence
from lockstep.parity.hypothesis import Hypothesis, Layout
from lockstep.parity.observation import Sample
from lockstep.parity.probe import ENOUGH, IMPOSSIBLE, Look, excess

LAGS = (1, -1)

COINCIDENCE = 1e-9
"""How improbable equal completions of one prompt must be before they are copies."""

NEAR = 0.25
"""Nats a token by which a series may miss another sample's and still be its own, in a pair that promises no bits."""


def counts(look: Look) -> Sequence[Evidence]:
    """DAT02, DAT03, DAT05: the trainer's tokens are not those that were drawn, or not as many as there are logprobs."""
    by_code: dict[str, list[str]] = {}
    for sample in look.observation.samples:
        found = _recount(sample)
        if found is not None:
            by_code.setdefault(found[0], []).append(f"{sample.id}: {found[1]}")
    resumed = {s.id for s in look.observation.samples if _boundary(s) is not None}
    lost = by_code.get("DAT05", ())
    if lost and not {one.split(": ")[0] for one in lost} <= resumed:
        by_code.setdefault("DAT02", []).extend(by_code.pop("DAT05"))
    return [
        Evidence(code, f"{len(said)} samples, as {said[0]}", certain=True, figures={"samples": len(said)})
        for code, said in by_code.items()
    ]


def templates(look: Look) -> Sequence[Evidence]:
    """DAT06: the engine says that it had another prompt."""
    other = [
        s for s in look.observation.samples
        if s.drawn_prompt_ids is not None and not np.array_equal(s.drawn_prompt_ids, s.prompt_ids)
    ]  # fmt: skip
    if not other:
        return ()
    first = other[0]
    assert first.drawn_prompt_ids is not None, "chosen for that"
    sizes = f"{len(first.drawn_prompt_ids)} tokens there, {len(first.prompt_ids)} here"
    why = f"the engine's prompt of {len(other)} samples is not the trainer's, as {first.id}: {sizes}"
    return [Evidence("DAT06", why, certain=True, figures={"samples": len(other)})]


def copies(look: Look) -> Sequence[Evidence]:
    """DAT07: requests with one prompt drew the same completions, which is too improbable to be chance."""
    first: dict[tuple[bytes, bytes], Sample] = {}
    pairs, chance, requests = 0, 0.0, len({s.group for s in look.observation.samples})
    for sample in look.observation.samples:
        if sample.sampler is None or sample.params is None or sample.params.greedy or _unlikely(sample.sampler):
            continue  # who knows how they were drawn, and how probable they are?
        key = sample.prompt_ids.tobytes(), sample.token_ids.tobytes()
        other = first.setdefault(key, sample)
        if other.group != sample.group:
            pairs += 1
            chance += float(sample.sampler.sum(dtype=np.float64))
    tries = math.log(max(len(look.observation.samples) ** 2 * requests, 1))
    if not pairs or chance + tries > math.log(COINCIDENCE):
        return ()
    why = f"{pairs} completions are copies of another request's; the odds of that are e^{chance:.0f}"
    return [Evidence("DAT07", why, certain=True, figures={"copies": pairs, "log_odds": chance})]


def shifted(look: Look) -> Sequence[Evidence]:
    """DAT01: the two series agree when one of them is moved by a token."""
    pairs = [pair for s in look.samples if (pair := _pair(s)) is not None and len(s.token_ids) > 2]
    if not pairs:
        return ()
    found = []
    for lag in LAGS:
        inner = [(a[1:-1], b[1:-1], b[1 - lag : len(b) - 1 - lag]) for a, b in pairs]
        total = sum(excess(a, b, look.grain) for a, b, _ in inner)
        left = sum(excess(a, moved, look.grain) for a, _, moved in inner)
        share = 1.0 - left / total if total > 0 else 0.0
        if share >= ENOUGH:
            words = "later" if lag > 0 else "earlier"
            why = f"the engine's series is the trainer's, one token {words}: this explains {share:.1%}"
            found.append(Evidence("DAT01", why, share, figures={"lag": lag, "explained": share}))
    return found


def swapped(look: Look) -> Sequence[Evidence]:
    """DAT04: the engine's series of one sample is the trainer's of another."""
    scored = [s for s in look.observation.samples if s.sampler is not None and s.trainer is not None]
    own = {s.id: _between(s, s, look.grain) for s in scored}
    wrong = [s for s in scored if own[s.id] > 0]
    total = sum(own.values())
    left, names = total, []
    for sample in wrong:
        near = min((_between(sample, other, look.grain) for other in scored if other is not sample), default=math.inf)
        if near <= (NEAR * len(sample.token_ids) if look.grain else 0.0) and near < own[sample.id]:
            left += near - own[sample.id]
            names.append(sample.id)
    share = 1.0 - left / total if total > 0 else 0.0
    if share < ENOUGH or len(names) < 2:
        return ()
    why = f"the engine's series of {', '.join(names[:4])} are those of other samples: this explains {share:.1%}"
    return [Evidence("DAT04", why, share, figures={"samples": len(names), "explained": share})]


def prompts(look: Look) -> Sequence[Evidence]:
    """DAT06: scored after a prompt with one token more or less, the mismatch goes away."""
    if not look.deviates("sampler"):
        return ()
    found = []
    for what, edit in _EDITS.items():
        changed = {s.id: edit(tuple(s.prompt_ids.tolist())) for s in look.samples if len(s.prompt_ids) > 1}
        found.append(look.evidence("DAT06", Hypothesis(prompts=changed), f"the engine ran the prompt {what}"))
    return [evidence for evidence in found if evidence is not None]


def neighbours(look: Look) -> Sequence[Evidence]:
    """DAT08: the trainer scores a sample behind the one before it in the batch."""
    if not look.deviates("trainer"):
        return ()
    before = {
        sample.id: (*previous.prompt_ids.tolist(), *previous.token_ids.tolist())
        for previous, sample in pairwise(look.samples)
    }
    why = "the trainer sees the sample before in its pack"
    evidence = look.evidence("DAT08", Hypothesis(layout=Layout(before=before)), why, "trainer")
    return [] if evidence is None else [evidence]


_EDITS: Mapping[str, Callable[[tuple[int, ...]], tuple[int, ...]]] = {
    "with its first token twice": lambda ids: (ids[0], *ids),
    "without its first token": lambda ids: ids[1:],
    "without its last token": lambda ids: ids[:-1],
    "with its last token twice": lambda ids: (*ids, ids[-1]),
}
"""A second start token, none, no generation prompt or a doubled one."""


def _unlikely(logprobs: np.ndarray) -> bool:
    """Whether a value is no logprob of a token that was drawn: not finite, or a floor."""
    return not bool((np.isfinite(logprobs) & (logprobs > -IMPOSSIBLE)).all())


def _recount(sample: Sample) -> tuple[str, str] | None:
    """Code and words, if the tokens are not those that were drawn or have not as many logprobs."""
    drawn, here = sample.drawn_ids, len(sample.token_ids)
    there = len(drawn) if drawn is not None else len(sample.sampler) if sample.sampler is not None else here
    if drawn is not None and np.array_equal(drawn, sample.token_ids):
        return None
    if drawn is None and there == here and not _too_many(sample):
        return None
    said = f"{there} drawn, {here} tokens in the batch"
    if _appended(sample, there):
        return "DAT03", f"{said}, although it ended by {sample.finish_reason or 'itself'}"
    boundary = _boundary(sample)
    if boundary is not None and here == there - 1 and _cut_at(sample, boundary):
        return "DAT05", f"{said}, the one after the update at token {boundary} is missing"
    return "DAT02", said


def _too_many(sample: Sample) -> bool:
    return sample.params is not None and len(sample.token_ids) > sample.params.max_tokens


def _appended(sample: Sample, there: int) -> bool:
    """Whether what was drawn is whole and one token follows it."""
    if _too_many(sample) and len(sample.token_ids) - 1 <= there:
        return True
    if len(sample.token_ids) != there + 1 or sample.finish_reason == "abort":
        return False
    return sample.drawn_ids is None or np.array_equal(sample.token_ids[:-1], sample.drawn_ids)


def _boundary(sample: Sample) -> int | None:
    """The first drawn token of the second weight version, if the engine says that there is one."""
    if sample.versions is None:
        return None
    at = np.flatnonzero(np.diff(sample.versions))
    return int(at[0]) + 1 if at.size else None


def _cut_at(sample: Sample, boundary: int) -> bool:
    """Whether the token at `boundary` is the one that is missing, as far as ids or series show."""
    if sample.drawn_ids is not None:
        kept = np.arange(len(sample.drawn_ids)) != boundary
        return np.array_equal(sample.drawn_ids[kept], sample.token_ids)
    if sample.sampler is None or sample.trainer is None:
        return True
    count = min(len(sample.sampler), len(sample.trainer))
    far = np.abs(sample.sampler[:count].astype(np.float64) - sample.trainer[:count])
    return boundary >= count or bool(far[:boundary].max(initial=0.0) <= far[boundary])


def _pair(sample: Sample) -> tuple[np.ndarray, np.ndarray] | None:
    return None if sample.sampler is None or sample.trainer is None else (sample.sampler, sample.trainer)


def _between(ours: Sample, theirs: Sample, grain: float) -> float:
    """Distance of the engine's series of one sample from the trainer's of another; a missing token is impossible."""
    assert ours.sampler is not None and theirs.trainer is not None, "chosen for that"
    count = min(len(ours.sampler), len(theirs.trainer))
    uneven = abs(len(ours.sampler) - len(theirs.trainer))
    return excess(ours.sampler[:count], theirs.trainer[:count], grain) + IMPOSSIBLE * uneven
