"""Scores rollouts at the versions they were sampled with, even where the weights changed in the middle of a sequence.

In: rollouts with the spans they were run in, and the parameters of every version these name. Out: the sampler's
logprobs once more, bit for bit.

    rollouts -> passes (spans.py) -> groups that fit the scratch pages
    group:  version 1: all its rows, packed, write keys into the pages and read them --> rows that decide -> head
            version 2: its rows go on over the pages as version 1 left them          --> rows that decide -> head

Model, attention and head are the kernels of the engine. A pass has pages of its own; passes that begin with the same
tokens at the same version share the full pages of the prompt.

Letters: T packed rows, N rows that decide a token, E hidden size, V vocabulary, K kv heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lockstep.core import Contract, Logprobs, Rollout
from lockstep.errors import InputError, message
from lockstep.kernels.attention import KEY_BLOCK, plan_tiles, slots
from lockstep.kernels.head import target_logprobs
from lockstep.kernels.linear import Packed
from lockstep.models.decoder import PagedKeys, Parameters, paged_hidden_states
from lockstep.models.prepared import Kept, Prepared
from lockstep.train.batch import require_rollouts
from lockstep.train.forward import Forward
from lockstep.train.spans import Pass, passes
from lockstep.train.targets import targets_of

SCRATCH = 4
"""Keys held at once, in forwards: several versions of one group then fill a forward each."""


@dataclass(frozen=True, slots=True, eq=False)
class Decided:
    """Hidden rows [N, E] that decided tokens, at one version, with its head.

    `parts` says whose: (index of the rollout, which of its tokens), in the order of the rows.
    """

    version: int
    hidden_NE: Tensor
    head: Packed
    parts: tuple[tuple[int, range], ...]

    def rows(self, chosen: Sequence[int]) -> Tensor:
        """Indices int64 [n] of the hidden rows of some parts, in the order of `chosen`."""
        ends = np.cumsum([len(tokens) for _, tokens in self.parts])
        pieces = [np.arange(ends[i] - len(self.parts[i][1]), ends[i]) for i in chosen]
        return torch.from_numpy(np.concatenate(pieces)).to(self.hidden_NE.device)


@dataclass(frozen=True, slots=True, eq=False)
class _Walk:
    """A pass with its place: `blocks` hold its keys, those of positions below `shared` are written by another."""

    rollout: int
    plan: Pass
    ids: np.ndarray  # int64 [end]
    first: int  # the row that decides token 0
    blocks: list[int]
    shared: int

    def tokens(self, start: int, end: int) -> range:
        """The tokens that rows start .. end - 1 decide on this pass."""
        decided = self.plan.tokens
        return range(max(start - self.first, decided.start), max(min(end - self.first, decided.stop), decided.start))


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Walks that are run together, and how many blocks they need."""

    walks: tuple[_Walk, ...]
    num_blocks: int


class SpanScorer:
    """Logprobs of rollouts *at the versions that sampled them*. Implements `core.Scorer`.

    `versions` are the published parameters by version number (see `WeightHistory`); a forward has at most `max_tokens`
    rows, and a group at most `SCRATCH * max_tokens` positions in its pages (a longer pass is alone in its own).
    """

    def __init__(self, forward: Forward, versions: Mapping[int, Parameters], max_tokens: int) -> None:
        assert max_tokens > 0, "a forward has rows"
        self.forward = forward
        self.max_tokens = max_tokens
        self._versions = versions
        self._prepared = Kept(forward.arch, forward.head_dtype)

    def score(self, rollouts: Sequence[Rollout]) -> list[Logprobs]:
        """One `Logprobs` a rollout, under the sampler's contract, weight versions included.

        Raises `InputError` for spans that cannot be true, a version whose weights are not there, or rollouts that the
        model cannot score, `ContractError` for another head dtype, `ModelError` for weights of another network.
        """
        values = [np.empty(len(rollout.token_ids), np.float32) for rollout in rollouts]
        with torch.no_grad():
            for decided in self.decided(rollouts):
                for contract, members in _by_contract(decided, rollouts).items():
                    owners = [rollouts[decided.parts[i][0]] for i in members]
                    tokens = [decided.parts[i][1] for i in members]
                    targets = targets_of(owners, decided.hidden_NE.device, tokens)
                    assert targets.temperature == contract.temperature, "targets follow the contract"
                    rows_NE = decided.hidden_NE[decided.rows(members)]
                    scored_N = target_logprobs(rows_NE, decided.head, targets)[0].cpu().numpy()
                    pieces = np.split(scored_N, np.cumsum([len(part) for part in tokens])[:-1])
                    for i, piece in zip(members, pieces, strict=True):
                        index, part = decided.parts[i]
                        values[index][part.start : part.stop] = piece
        return [Logprobs(v, rollout.sampler_logprobs.contract) for v, rollout in zip(values, rollouts, strict=True)]

    def decided(self, rollouts: Sequence[Rollout]) -> Iterator[Decided]:
        """Run every rollout as it was run; yields the hidden rows that decided its tokens, each token once.

        Raises what `score` raises, before anything has run. Meant for `torch.no_grad`.
        """
        require_rollouts(rollouts)
        plans = []
        for rollout in rollouts:
            self.forward.require_rollout(rollout)
            plans.append(passes(rollout))
        self._require_weights(rollouts, plans)
        return self._run(list(_groups(rollouts, plans, SCRATCH * self.max_tokens)))

    def _require_weights(self, rollouts: Sequence[Rollout], plans: Sequence[tuple[Pass, ...]]) -> None:
        for rollout, plan in zip(rollouts, plans, strict=True):
            for number in sorted({span.version for one in plan for span in one.spans}):
                if number not in self._versions:
                    held = ", ".join(str(version) for version in sorted(self._versions)) or "none"
                    rule = "the weights of every version that it was run at must be there"
                    do = "Keep more versions, or score it sooner"
                    raise InputError(
                        message(f"rollout ({rollout.id})", rule, got=f"no weights of version {number}",
                                expected=f"one of the versions held: {held}", do=do)
                    )  # fmt: skip
        for number in sorted({span.version for plan in plans for one in plan for span in one.spans}):
            self.forward.require_parameters(self._versions[number])

    def _run(self, groups: Sequence[_Group]) -> Iterator[Decided]:
        for group in groups:
            versions = sorted({span.version for walk in group.walks for span in walk.plan.spans})
            scratch = None
            for number in versions:
                params = self._versions[number]
                weights = self._prepared.of(params)
                if scratch is None:
                    scratch = self._scratch(group.num_blocks, params)
                for pieces in _forwards(group.walks, number, self.max_tokens):
                    parts, rows = _deciding(pieces)
                    hidden_TE = self._hidden(weights, pieces, scratch)
                    if parts:
                        rows_N = torch.from_numpy(rows).to(hidden_TE.device)
                        yield Decided(number, hidden_TE[rows_N], weights.head, parts)

    def _scratch(self, num_blocks: int, params: Parameters) -> Tensor:
        """Empty pages of all layers [layers, 2, blocks, K, KEY_BLOCK, D]. Zero: attention wants finite slots."""
        arch, like = self.forward.arch, params["embedding"]
        shape = (arch.num_layers, 2, num_blocks, arch.num_kv_heads, KEY_BLOCK, arch.head_dim)
        return torch.zeros(shape, dtype=like.dtype, device=like.device)

    def _hidden(self, weights: Prepared, pieces: Sequence[tuple[_Walk, int, int]], scratch: Tensor) -> Tensor:
        """Hidden rows [T, E] of the pieces (walk, start, end), laid end to end; their keys are in the pages then."""
        arch, device = self.forward.arch, scratch.device
        starts, counts = [start for _, start, _ in pieces], [end - start for _, start, end in pieces]
        tables = [walk.blocks for walk, _, _ in pieces]
        ids_T = torch.from_numpy(np.concatenate([walk.ids[start:end] for walk, start, end in pieces])).to(device)
        positions_T = torch.from_numpy(np.concatenate([np.arange(start, end) for _, start, end in pieces])).to(device)
        slots_T = slots(starts, counts, tables).to(device)
        keys = PagedKeys(scratch, plan_tiles(starts, counts, tables, device=device), slots_T)
        return paged_hidden_states(weights.operands, arch, ids_T, positions_T, keys)


def _groups(rollouts: Sequence[Rollout], plans: Sequence[tuple[Pass, ...]], max_positions: int) -> Iterator[_Group]:
    """Cut the passes, in order, into groups whose pages fit; a longer pass is alone."""
    limit = -(-max_positions // KEY_BLOCK)
    walks: list[_Walk] = []
    prompts: dict[tuple[int, bytes], list[int]] = {}
    used = 0
    for index, (rollout, plan) in enumerate(zip(rollouts, plans, strict=True)):
        for one in plan:
            if walks and used + -(-one.end // KEY_BLOCK) > limit:
                yield _Group(tuple(walks), used)
                walks, prompts, used = [], {}, 0
            walk = _place(rollout, index, one, used, prompts)
            used = walk.blocks[-1] + 1
            walks.append(walk)
    if walks:
        yield _Group(tuple(walks), used)


def _place(rollout: Rollout, index: int, plan: Pass, used: int, prompts: dict[tuple[int, bytes], list[int]]) -> _Walk:
    """Give a pass its blocks from number `used` on, and those of a prompt that is there already.

    The row that decides the first token is never shared: everyone needs its hidden state.
    """
    ids = np.concatenate((rollout.prompt_ids, rollout.token_ids)).astype(np.int64)[: plan.end]
    first = len(rollout.prompt_ids) - 1
    full = min(first, plan.spans[0].end) // KEY_BLOCK
    key = (plan.spans[0].version, ids[: full * KEY_BLOCK].tobytes())
    shared = prompts.get(key, [])
    blocks = [*shared, *range(used, used + -(-plan.end // KEY_BLOCK) - len(shared))]
    prompts.setdefault(key, blocks[:full])
    return _Walk(index, plan, ids, first, blocks, len(shared) * KEY_BLOCK)


def _forwards(walks: Sequence[_Walk], version: int, max_tokens: int) -> Iterator[list[tuple[_Walk, int, int]]]:
    """The rows of one version as pieces (walk, start, end), in forwards of at most `max_tokens`; long ones are cut.

    In order: whoever wrote a shared prompt comes before, or beside, those that read it.
    """
    pieces: list[tuple[_Walk, int, int]] = []
    room = max_tokens
    for walk in walks:
        for span in walk.plan.spans:
            at = max(span.start, walk.shared)
            while span.version == version and at < span.end:
                count = min(room, span.end - at)
                pieces.append((walk, at, at + count))
                at, room = at + count, room - count
                if not room:
                    yield pieces
                    pieces, room = [], max_tokens
    if pieces:
        yield pieces


def _deciding(pieces: Sequence[tuple[_Walk, int, int]]) -> tuple[tuple[tuple[int, range], ...], np.ndarray]:
    """Which tokens the rows of a forward decide, and the packed rows int64 [N] that do."""
    parts, rows, packed = [], [np.empty(0, np.int64)], 0
    for walk, start, end in pieces:
        if tokens := walk.tokens(start, end):
            parts.append((walk.rollout, tokens))
            rows.append(packed + walk.first - start + np.arange(tokens.start, tokens.stop))
        packed += end - start
    return tuple(parts), np.concatenate(rows)


def _by_contract(decided: Decided, rollouts: Sequence[Rollout]) -> dict[Contract, list[int]]:
    """Which parts are scored together: those of one contract, whatever their versions."""
    found: dict[Contract, list[int]] = {}
    for i, (index, _) in enumerate(decided.parts):
        contract = replace(rollouts[index].sampler_logprobs.contract, weight_versions=())
        found.setdefault(contract, []).append(i)
    return found
