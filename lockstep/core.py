"""The nouns every stage shares, and the protocols Sampler, Scorer and Check.

In: nothing of ours. Out: frozen values that may cross any seam.

    Task -> Rollout -> Verdict -> Decision -> Reward -> Batch (train/batch.py)

>>> contract = Contract(mode="processed", temperature=1.0, support="full", head_dtype="float32", weight_versions=(0,))
>>> a = Logprobs(np.array([-1.0, -2.0], np.float32), contract)
>>> float(np.abs(a - a).max())
0.0
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from lockstep.errors import ContractError, message
from lockstep.sampling_params import SamplingParams

Message = Mapping[str, str]  # {"role": ..., "content": ...}
FinishReason = Literal["stop", "length", "abort"]


class Path(enum.IntEnum):
    """Which way through the engine produced the logits of a token."""

    PREFILL = 0  # the whole prompt in one forward
    CHUNK = 1  # the last chunk of a prompt that was prefilled in pieces
    DECODE = 2  # one token at a time
    RECOMPUTE = 3  # prefilled again after its pages were taken away

    @staticmethod
    def label(value: int) -> str:
        """The lower-case name of what a trace holds, which may be a number of no path at all."""
        return next((path.name.lower() for path in Path if path == value), f"unknown ({value})")


@dataclass(frozen=True, slots=True)
class Contract:
    """What a logprob means. Two numbers may be compared only if all of it agrees.

    `support` is ``"full"`` or a description of the truncation (``"top_k=20,top_p=0.9,min_p=0.0"``), `adjustments`
    one of what is done to the logits before the temperature (empty: nothing); `weight_versions` lists the distinct
    versions that produced the values, in order.
    """

    mode: Literal["raw", "processed"]
    temperature: float
    support: str
    head_dtype: str
    weight_versions: tuple[int, ...]
    adjustments: str = ""

    @classmethod
    def of(cls, params: SamplingParams, head_dtype: str, weight_versions: tuple[int, ...]) -> Contract:
        """The contract of tokens drawn with `params`.

        Greedy tokens carry raw logprobs at T=1; where the choice was made among adjusted logits they are processed:
        logprobs of those, at T=1.
        """
        if params.greedy:
            mode = "processed" if params.adjusts else "raw"
            return cls(mode, 1.0, "full", head_dtype, weight_versions, params.adjustments)
        support = "full"
        if params.truncates:
            support = f"top_k={params.top_k},top_p={float(params.top_p)},min_p={float(params.min_p)}"
        return cls("processed", params.temperature, support, head_dtype, weight_versions, params.adjustments)

    @classmethod
    def of_prompt(cls, params: SamplingParams, head_dtype: str, weight_versions: tuple[int, ...]) -> Contract:
        """The contract of `Rollout.prompt_logprobs`: nothing is adjusted or truncated there; greedy as in `of`."""
        return cls.of(SamplingParams(temperature=params.temperature), head_dtype, weight_versions)

    def require(self, other: Contract, *, ignore_version: bool = False) -> None:
        """Raise `ContractError` unless `other` means the same quantity."""
        mine = replace(self, weight_versions=()) if ignore_version else self
        theirs = replace(other, weight_versions=()) if ignore_version else other
        if mine != theirs:
            names = [f for f in self.__dataclass_fields__ if getattr(mine, f) != getattr(theirs, f)]
            raise ContractError(
                message(
                    f"logprobs ({', '.join(names)})",
                    "only logprobs of one contract may be compared",
                    got=theirs,
                    expected=mine,
                    do="Score again under the sampler's contract",
                )
            )


@dataclass(frozen=True, slots=True, eq=False)
class Logprobs:
    """`values` float32 [N], natural log, with the contract that says what they are."""

    values: np.ndarray
    contract: Contract

    def __len__(self) -> int:
        return len(self.values)

    def __sub__(self, other: Logprobs) -> np.ndarray:
        """Log ratio float32 [N] of two logprobs of the *same* contract, weight version included."""
        self.contract.require(other.contract)
        return self.values - other.values

    def update_since(self, older: Logprobs) -> np.ndarray:
        """Log ratio float32 [N] between two weight versions; everything else must agree."""
        self.contract.require(older.contract, ignore_version=True)
        return self.values - older.values


@dataclass(frozen=True, slots=True)
class Span:
    """Positions `start` to `end` - 1 of a sequence ran at weight `version`, over the keys that earlier spans left."""

    start: int
    end: int
    version: int


@dataclass(frozen=True, slots=True, eq=False)
class Provenance:
    """Where each of T sampled tokens came from: weight version int32 [T], `Path` uint8 [T], cached prompt bool [T].

    `spans` is how the sequence was run, in order of time, versions rising; a span that starts at 0 again wrote all keys
    anew. Token t after a prompt of P was decided by position P + t - 1 in the first span that runs it. Empty: every
    position once, at the one weight version.
    """

    weight_version: np.ndarray
    path: np.ndarray
    cached: np.ndarray
    spans: tuple[Span, ...] = ()

    def __len__(self) -> int:
        return len(self.weight_version)

    @property
    def versions(self) -> set[int]:
        """Numbers of the weights that drew a token or wrote a key that one saw."""
        return {int(version) for version in self.weight_version} | {span.version for span in self.spans}


@dataclass(frozen=True, slots=True, eq=False)
class Support:
    """Token ids the sampler kept, ragged: token t kept `ids[offsets[t]:offsets[t + 1]]` (int32 [M], int64 [T + 1])."""

    ids: np.ndarray
    offsets: np.ndarray


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt (text, or chat messages) with the answer that is known to be right."""

    id: str
    prompt: str | tuple[Message, ...]
    answer: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Rollout:
    """One sampled completion. `token_ids` int32 [T] includes the stop token if one was drawn; `text` does not."""

    id: str
    task_id: str
    prompt_ids: np.ndarray
    token_ids: np.ndarray
    text: str
    finish_reason: FinishReason
    params: SamplingParams
    sampler_logprobs: Logprobs
    provenance: Provenance
    support: Support | None = None
    prompt_logprobs: Logprobs | None = None  # of prompt_ids[1:], if they were asked for

    @property
    def request_id(self) -> str:
        """What the samples of one request share; a rollout is named ``request/sample``."""
        return self.id.rpartition("/")[0]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check found. `abstain` and `error` are not `fail`: undecided is never 0.0."""

    status: Literal["pass", "fail", "abstain", "error"]
    code: str
    check: str  # name@version
    witness: str = ""
    span: tuple[int, int] | None = None  # characters of the checked text
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Decision:
    """A gate's answer about `subject`. Only `admit` lets it pass."""

    outcome: Literal["admit", "hold", "reject"]
    subject: str
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)

    @property
    def admitted(self) -> bool:
        return self.outcome == "admit"


@dataclass(frozen=True, slots=True)
class Reward:
    """A rollout's reward (None: undecided, the rollout carries no signal) and what it was made of."""

    rollout_id: str
    value: float | None
    parts: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Request:
    """`params.n` completions of one prompt; tokens are keyed by (params.seed, id, sample, position), not the batch."""

    id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    task_id: str = ""


@runtime_checkable
class Sampler(Protocol):
    """Draws tokens."""

    def sample(self, requests: Sequence[Request]) -> list[Rollout]:
        """All completions, in the order of `requests` and then of the sample index."""
        ...


@runtime_checkable
class Scorer(Protocol):
    """Says what logprob it gives to tokens that somebody else drew."""

    def score(self, rollouts: Sequence[Rollout]) -> list[Logprobs]:
        """One `Logprobs` a rollout, under the rollout's own contract at the scorer's weight version."""
        ...


@runtime_checkable
class Check(Protocol):
    """Judges one completion of one task."""

    def check(self, task: Task, text: str) -> Verdict: ...
