"""Sample rollouts for the report: the telling ones of a step, token by token.

In: rollout records, and a decoder if there is one. Out: prompts with completions cut into shaded pieces.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lockstep.dashboard.units import ABSENT, exact, fixed
from lockstep.trace import RolloutRecord, RunDirectory

Decode = Callable[[Sequence[int]], str]

PROMPTS = 2
COMPLETIONS = 4
MOST_TOKENS = 240
MOST_CHARACTERS = 2000
SHADES = (0.9, 0.5, 0.2, 0.05)
"""Probabilities at which the shade of a token changes."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One token: its text ("" if unknown), how surprising it was (0 likely .. 4 rare), and its numbers in words."""

    text: str
    shade: int
    note: str
    differs: bool


@dataclass(frozen=True, slots=True)
class Completion:
    """One row of the table."""

    id: str
    reward: str
    good: bool | None
    advantage: str
    finish: str
    parity: str
    verdict: str
    pieces: Sequence[Piece]
    text: str  # shown when tokens cannot be decoded one by one
    hidden: int  # tokens not shown


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt with some of its completions."""

    task: str
    prompt: str
    total: int
    completions: Sequence[Completion]


@dataclass(frozen=True, slots=True)
class Sample:
    """Groups of one step."""

    title: str
    groups: Sequence[Group]


def samples(run: RunDirectory, decode: Decode | None) -> list[Sample]:
    """Groups of the first and the last step whose rollouts are on disk."""
    steps = run.rollout_steps()
    return [
        Sample(f"Step {step}", groups(run.rollouts(step), decode))
        for step in dict.fromkeys([*steps[-1:], *steps[:1]])
    ]  # fmt: skip


def groups(records: Sequence[RolloutRecord], decode: Decode | None) -> list[Group]:
    """The prompts with the widest spread of rewards, each with its best and worst completions."""
    by_task: dict[str, list[RolloutRecord]] = {}
    for record in records:
        by_task.setdefault(record.rollout.task_id, []).append(record)
    chosen = sorted(by_task.values(), key=_spread, reverse=True)[:PROMPTS]
    return [
        Group(
            task=group[0].rollout.task_id,
            prompt=_cut(group[0].prompt),
            total=len(group),
            completions=[_completion(record, decode) for record in _telling(group)],
        )
        for group in chosen
    ]


def differing(records: Sequence[RolloutRecord], decode: Decode | None) -> list[Group]:
    """The rollouts of a refused batch with tokens that differ, under their prompts."""
    sizes = Counter(record.rollout.task_id for record in records)
    found = groups([record for record in records if _differs(record).any()], decode)
    return [replace(group, total=sizes[group.task]) for group in found]


def pieces(record: RolloutRecord, decode: Decode | None) -> list[Piece]:
    """The first `MOST_TOKENS` tokens. Bytes of a character that several tokens share go with the last of them."""
    ids = [int(token) for token in record.rollout.token_ids[:MOST_TOKENS]]
    texts = _texts(ids, decode) if decode else [""] * len(ids)
    differs = _differs(record)
    values = record.rollout.sampler_logprobs.values
    found = []
    for place, (token, text) in enumerate(zip(ids, texts, strict=True)):
        value = float(values[place]) if place < len(values) else math.nan
        note = f"token {token}, logprob {value:.4f}, probability {math.exp(min(value, 0.0)):.3f}"
        if differs[place] and record.trainer_logprobs is not None:
            note += f"; trainer {_at(record.trainer_logprobs.values, place)}"
        found.append(Piece(text, _shade(value), note, bool(differs[place])))
    return found


def _texts(ids: Sequence[int], decode: Decode) -> list[str]:
    """The text each token adds to those before it, decoded in windows, so that long completions stay cheap."""
    texts, window, said = [], [], ""
    for token in ids:
        window.append(token)
        text = decode(window)
        if text.endswith("\N{REPLACEMENT CHARACTER}") and len(window) < 8:
            texts.append("")
            continue
        texts.append(text.removeprefix(said))
        window = [token]
        said = decode(window)
    return texts


def _shade(value: float) -> int:
    probability = math.exp(min(value, 0.0)) if not math.isnan(value) else 0.0
    return sum(probability < bound for bound in SHADES)


def _at(values: np.ndarray, place: int) -> str:
    return f"{float(values[place]):.4f}" if place < len(values) else "missing"


def _differs(record: RolloutRecord) -> np.ndarray:
    """Which tokens have other bits on the trainer's side, bool [T]; a missing value differs, a missing score not."""
    size = len(record.rollout.token_ids)
    if record.trainer_logprobs is None:
        return np.zeros(size, bool)
    mine, theirs = record.rollout.sampler_logprobs.values, record.trainer_logprobs.values
    same = min(len(mine), len(theirs), size)
    differs = np.ones(size, bool)
    differs[:same] = mine[:same].view(np.int32) != theirs[:same].view(np.int32)
    return differs


def _parity(record: RolloutRecord) -> str:
    if record.trainer_logprobs is None:
        return ABSENT
    differs = _differs(record)
    if not differs.any():
        return "0.0"
    mine, theirs = record.rollout.sampler_logprobs.values, record.trainer_logprobs.values
    if len(mine) != len(theirs):
        return f"{len(mine)} against {len(theirs)} tokens"
    return exact(float(np.abs(mine.astype(np.float64) - theirs).max()))


def _completion(record: RolloutRecord, decode: Decode | None) -> Completion:
    value = record.reward.value if record.reward is not None else None
    verdict = record.verdict
    return Completion(
        id=record.rollout.id,
        reward="undecided" if record.reward is not None and value is None else fixed(value, 2),
        good=None if value is None or value == 0.5 else value > 0.5,
        advantage=fixed(record.advantage, 2),
        finish=record.rollout.finish_reason,
        parity=_parity(record),
        verdict=f"{verdict.status}: {verdict.code}" + (f", {verdict.witness}" if verdict.witness else "")
        if verdict
        else "",
        pieces=pieces(record, decode),
        text="" if decode else _cut(record.rollout.text),
        hidden=max(0, len(record.rollout.token_ids) - MOST_TOKENS),
    )


def _reward(record: RolloutRecord) -> float:
    return record.reward.value if record.reward is not None and record.reward.value is not None else -math.inf


def _spread(group: Sequence[RolloutRecord]) -> float:
    values = [value for record in group if math.isfinite(value := _reward(record))]
    return max(values) - min(values) if values else -1.0


def _telling(group: Sequence[RolloutRecord]) -> list[RolloutRecord]:
    """The best and the worst, unlike texts first; all, if there are few."""
    ranked = sorted(group, key=_reward, reverse=True)
    unlike = list({record.rollout.text: record for record in reversed(ranked)}.values())[::-1]
    ranked = unlike if len(unlike) >= COMPLETIONS else ranked
    if len(ranked) <= COMPLETIONS:
        return ranked
    return [*ranked[: COMPLETIONS // 2], *ranked[-COMPLETIONS // 2 :]]


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + " …"
