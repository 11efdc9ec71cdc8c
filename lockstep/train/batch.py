"""From rollouts to packed tensors: the only shift-by-one of the code base.

In: rollouts of one contract with one advantage each. Out: microbatches of whole sequences under a token budget.

    prompt      p0 p1 p2            a token is predicted by the hidden state of the row before it; the last token
    completion           c0 c1      predicts nothing and is not fed
    fed         p0 p1 p2 c0
    rows              2  3          targets  c0 c1

Completions of one prompt share its rows, which are packed (and computed) once.

Letters: T packed tokens, N target tokens, R rollouts of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lockstep import numerics
from lockstep.core import Contract, Logprobs, Rollout, Support
from lockstep.errors import ContractError, InputError, message
from lockstep.kernels.attention import Segment
from lockstep.kernels.head import Targets
from lockstep.train.targets import targets_of

Normalize = Literal["token", "sequence"]
Sequences = Sequence[tuple[np.ndarray, np.ndarray]]
"""(prompt ids [P], completion ids [C]) of each sequence, P and C at least 1."""


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """What a forward needs: sequences laid end to end, and which packed row predicts which target."""

    index: tuple[int, ...]  # which of the caller's sequences these are, in packing order
    segments: tuple[Segment, ...]  # what each prompt and each completion sees; their own rows are all of T
    ids_T: Tensor
    positions_T: Tensor
    rows_N: Tensor  # packed row whose hidden state predicts the target
    targets_N: Tensor
    sequence_N: Tensor  # which sequence of this packing a target belongs to

    def split(self, values_N: np.ndarray) -> list[np.ndarray]:
        """Values of the targets, cut into one array a sequence, in packing order."""
        counts = torch.bincount(self.sequence_N, minlength=len(self.index)).cpu().numpy()
        return np.split(values_N, np.cumsum(counts)[:-1])


@dataclass(frozen=True, slots=True, eq=False)
class Microbatch:
    """A packing with what the loss needs; `weights_N` are normalised over the whole batch, so that losses just add."""

    packed: Packed
    sampler_logprobs_N: Tensor
    anchor_logprobs_N: Tensor | None  # `Batch.anchor`
    advantages_N: Tensor
    weights_N: Tensor
    targets: Targets
    has_signal: bool  # False: every advantage is 0, so the objective has no gradient here

    @property
    def num_targets(self) -> int:
        return self.packed.targets_N.shape[0]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Rollouts of one contract (but for weight versions), `advantages` float64 [R], and how the loss is averaged.
    Validated when made.

    `anchor` are the trainer's logprobs before the first step that is taken on these rollouts, one a rollout; None while
    that step is yet to come, when the forward of the loss gives the same numbers. Corrections start from them.

    Raises `InputError` for rollouts that cannot be trained on (no tokens, missing, NaN or misaligned logprobs, a token
    outside its recorded support) and `ContractError` for mixed contracts or logprobs that are not the sampler's.
    """

    rollouts: tuple[Rollout, ...]
    advantages: np.ndarray
    normalize: Normalize = "token"
    anchor: tuple[Logprobs, ...] | None = None

    def __post_init__(self) -> None:
        require_rollouts(self.rollouts)
        if self.advantages.shape != (len(self.rollouts),) or not np.isfinite(self.advantages).all():
            raise InputError(
                message("batch (advantages)", "every rollout needs one finite advantage", got=self.advantages,
                        expected=f"{len(self.rollouts)} finite numbers", do="Give 0.0 to a rollout without signal")
            )  # fmt: skip
        for rollout in self.rollouts:
            self.contract.require(rollout.sampler_logprobs.contract, ignore_version=True)
            _require_trainable(rollout)
        for rollout, logprobs in zip(self.rollouts, self.anchor or (), strict=self.anchor is not None):
            self.contract.require(logprobs.contract, ignore_version=True)
            assert logprobs.values.shape == rollout.token_ids.shape, f"anchor of {rollout.id}: one logprob a token"

    @classmethod
    def of(cls, rollouts: Sequence[Rollout], advantages: Sequence[float], normalize: Normalize = "token") -> Batch:
        """A batch from plain sequences, in their order."""
        return cls(tuple(rollouts), np.asarray(advantages, np.float64), normalize)

    @property
    def contract(self) -> Contract:
        return self.rollouts[0].sampler_logprobs.contract

    @property
    def num_tokens(self) -> int:
        return sum(len(rollout.token_ids) for rollout in self.rollouts)

    @property
    def has_signal(self) -> np.ndarray:
        """Bool [R]: whose advantage is not 0. The rest is scored, for the parity gate, but moves no weight."""
        return self.advantages != 0.0

    @property
    def groups_without_signal(self) -> int:
        """Number of tasks of which no rollout has a signal."""
        tasks = {rollout.task_id for rollout in self.rollouts}
        moved = {rollout.task_id for rollout, signal in zip(self.rollouts, self.has_signal, strict=True) if signal}
        return len(tasks - moved)

    def microbatches(self, max_tokens: int, device: str | torch.device = "cpu") -> list[Microbatch]:
        """Whole sequences in order, at most `max_tokens` packed rows each (a longer sequence is alone in its own).

        Rollouts with a signal come first and never share a microbatch with one that has none.
        """
        order = np.argsort(~self.has_signal, kind="stable")
        cut = int(self.has_signal.sum())
        parts = [part.tolist() for part in (order[:cut], order[cut:])]
        return [
            self._microbatch(pack(sequences(self.rollouts), chosen, device))
            for part in parts
            for chosen in plan(sequences(self.rollouts), part, max_tokens)
        ]

    def minibatches(self, n: int, seed: int, step: int) -> list[Batch]:
        """Split into `n` batches of nearly equal size, one optimizer step each; shuffled by (seed, step) if `n` > 1."""
        if not 1 <= n <= len(self.rollouts):
            raise InputError(
                message("batch (minibatches)", "every minibatch needs a rollout", got=n,
                        expected=f"1 to {len(self.rollouts)}", do="Lower train.num_minibatches")
            )  # fmt: skip
        if n == 1:
            return [self]
        key = numerics.request_key(seed, "minibatches", step)
        order = np.random.Generator(np.random.Philox(key=key)).permutation(len(self.rollouts))
        parts = (np.sort(part) for part in np.array_split(order, n))
        return [self._part(part) for part in parts]

    def _part(self, chosen: np.ndarray) -> Batch:
        rollouts = tuple(self.rollouts[i] for i in chosen)
        anchor = None if self.anchor is None else tuple(self.anchor[i] for i in chosen)
        return Batch(rollouts, self.advantages[chosen], self.normalize, anchor)

    def _microbatch(self, packed: Packed) -> Microbatch:
        chosen = [self.rollouts[i] for i in packed.index]
        device = packed.ids_T.device
        counts = np.array([len(rollout.token_ids) for rollout in chosen])
        share = 1.0 / self.num_tokens if self.normalize == "token" else 1.0 / (len(self.rollouts) * counts)
        weights = np.repeat(np.broadcast_to(share, counts.shape), counts)
        advantages = np.repeat(self.advantages[list(packed.index)], counts)
        logprobs = np.concatenate([rollout.sampler_logprobs.values for rollout in chosen])
        anchor = None if self.anchor is None else np.concatenate([self.anchor[i].values for i in packed.index])
        return Microbatch(
            packed=packed,
            sampler_logprobs_N=torch.from_numpy(logprobs).to(device),
            anchor_logprobs_N=None if anchor is None else torch.from_numpy(anchor).to(device),
            advantages_N=torch.from_numpy(advantages.astype(np.float32)).to(device),
            weights_N=torch.from_numpy(weights.astype(np.float32)).to(device),
            targets=targets_of(chosen, device),
            has_signal=bool(self.has_signal[list(packed.index)].any()),
        )


def sequences(rollouts: Sequence[Rollout]) -> Sequences:
    """The token ids of rollouts, as `pack` takes them."""
    return [(rollout.prompt_ids, rollout.token_ids) for rollout in rollouts]


def plan(pairs: Sequences, chosen: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Cut `chosen` into runs whose packed rows fit the budget; a longer sequence is alone. A prompt counts once."""
    run: list[int] = []
    prompts: set[bytes] = set()
    used = 0
    for i in chosen:
        prompt, completion = pairs[i]
        name, own = np.asarray(prompt, np.int64).tobytes(), len(completion) - 1
        cost = own if name in prompts else own + len(prompt)
        if run and used + cost > max_tokens:
            yield run
            run, prompts, used, cost = [], set(), 0, own + len(prompt)
        run.append(i)
        prompts.add(name)
        used += cost
    if run:
        yield run


def pack(pairs: Sequences, chosen: Sequence[int], device: str | torch.device = "cpu") -> Packed:
    """Lay the `chosen` sequences end to end, equal prompts once. This is where tokens are shifted, and nowhere else."""
    places: dict[bytes, np.ndarray] = {}
    segments, ids, positions, rows = [], [], [], []
    used = 0
    for i in chosen:
        prompt, completion = (np.asarray(part, np.int64) for part in pairs[i])
        name = prompt.tobytes()
        if name not in places:
            places[name] = used + np.arange(len(prompt))
            segments.append(Segment(places[name], len(prompt)))
            ids.append(prompt)
            positions.append(np.arange(len(prompt)))
            used += len(prompt)
        own = used + np.arange(len(completion) - 1)
        if len(own):
            segments.append(Segment(np.concatenate((places[name], own)), len(own)))
            ids.append(completion[:-1])
            positions.append(len(prompt) + np.arange(len(own)))
            used += len(own)
        rows.append(np.concatenate((places[name][-1:], own)))
    columns = (
        np.concatenate(ids),
        np.concatenate(positions),
        np.concatenate(rows),
        np.concatenate([np.asarray(pairs[i][1], np.int64) for i in chosen]),
        np.repeat(np.arange(len(chosen)), [len(row) for row in rows]),
    )
    ids_T, positions_T, rows_N, targets_N, sequence_N = (torch.from_numpy(column).to(device) for column in columns)
    return Packed(tuple(chosen), tuple(segments), ids_T, positions_T, rows_N, targets_N, sequence_N)


def require_rollouts(rollouts: Sequence[Rollout]) -> None:
    """Raise `InputError` unless every rollout has a prompt, tokens, and a support exactly if its contract names one."""
    if not rollouts:
        raise _refused(
            "batch (0 rollouts)", "there must be something to score", 0, "at least 1", "Sample rollouts first"
        )
    for rollout in rollouts:
        subject, tokens = f"rollout ({rollout.id})", len(rollout.token_ids)
        if not len(rollout.prompt_ids) or not tokens:
            got = f"{len(rollout.prompt_ids)} prompt and {tokens} completion tokens"
            raise _refused(subject, "a rollout has a prompt and tokens", got, "at least 1 each", "Leave it out")
        truncated = rollout.sampler_logprobs.contract.support != "full"
        if truncated != (rollout.support is not None):
            got = "none" if rollout.support is None else "one"
            expected = "one for every token" if truncated else "none"
            do = "Record the support where the sampler truncates, and only there"
            raise _refused(subject, "the recorded support must follow the contract", got, expected, do)
        if rollout.support is not None:
            _require_support(subject, rollout.support, rollout.token_ids)


def _require_support(subject: str, support: Support, token_ids: np.ndarray) -> None:
    sizes = np.diff(support.offsets)
    aligned = len(sizes) == len(token_ids) and support.offsets[0] == 0 and support.offsets[-1] == len(support.ids)
    if not aligned or (sizes < 1).any():
        got, expected = f"{len(sizes)} entries", f"{len(token_ids)} of at least 1 token"
        raise _refused(subject, "misaligned support", got, expected, "Sample it again")
    inside = np.add.reduceat(support.ids == np.repeat(token_ids, sizes), support.offsets[:-1]) > 0
    if not inside.all():
        at = int(np.flatnonzero(~inside)[0])
        got, expected = f"token {token_ids[at]} at {at}", "one of the tokens that were kept"
        raise _refused(subject, "a token lies outside its own support", got, expected, "Sample it again")


def _require_trainable(rollout: Rollout) -> None:
    subject, tokens, logprobs = f"rollout ({rollout.id})", len(rollout.token_ids), rollout.sampler_logprobs
    contract = logprobs.contract
    if contract.mode != "processed" or rollout.params.greedy:
        do = "Sample training rollouts with temperature > 0 and processed logprobs"
        got = "greedy sampling" if rollout.params.greedy else f"{contract.mode} logprobs"
        raise ContractError(
            message(subject, "only the distribution that was sampled from can be trained on", got=got,
                    expected="processed logprobs", do=do)
        )  # fmt: skip
    Contract.of(rollout.params, contract.head_dtype, contract.weight_versions).require(contract)
    if logprobs.values.dtype != np.float32 or logprobs.values.shape != (tokens,) or len(rollout.provenance) != tokens:
        got = f"{logprobs.values.dtype} {logprobs.values.shape}, provenance of {len(rollout.provenance)}"
        do = "Sample it again; logprobs are never padded or cut"
        raise _refused(subject, "missing or misaligned logprobs", got, f"float32 ({tokens},) and {tokens}", do)
    if not np.isfinite(logprobs.values).all():
        at = int(np.flatnonzero(~np.isfinite(logprobs.values))[0])
        do = "Find out why the engine gave it; it is never replaced"
        raise _refused(subject, "a logprob must be finite", f"{logprobs.values[at]} at token {at}", "a number <= 0", do)


def _refused(subject: str, rule: str, got: object, expected: object, do: str) -> InputError:
    return InputError(message(subject, rule, got=got, expected=expected, do=do))
