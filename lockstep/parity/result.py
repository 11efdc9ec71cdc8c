"""What a comparison found, in numbers, in words and as evidence for the gate.

In: nothing of ours but errors. Out: `ParityResult`, `FirstDifference`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lockstep.errors import message

Status = Literal["equal", "differs", "empty", "missing", "misaligned", "not_finite"]


@dataclass(frozen=True, slots=True)
class FirstDifference:
    """The first token, in the order of the rollouts and then of the tokens, that two sides do not agree on.

    `index` counts the tokens of the completion, `position` those of the whole sequence; `path` is how the engine got
    there. `sampler` and `trainer` are natural logs, `*_bits` their float32 as 0x and eight hex digits.
    """

    rollout_id: str
    index: int
    token_id: int
    position: int
    sampler: float
    trainer: float
    sampler_bits: str
    trainer_bits: str
    weight_version: int
    path: str
    cached: bool

    def where(self) -> str:
        """Everything but the values, as a phrase."""
        cached = ", cached prompt" if self.cached else ""
        return (
            f"token id {self.token_id} at position {self.position}, weight version {self.weight_version}, "
            f"path {self.path}{cached}"
        )


@dataclass(frozen=True, slots=True)
class ParityResult:
    """`status` says which; only ``equal`` is parity.

    `max`, `p99` and `mean` are of the distance abs(trainer - sampler) over all tokens, in nats (p99: the smallest value
    that 99 % of tokens do not exceed). `num_differing` counts tokens whose *bits* differ, which is the truth: 0.0 and
    -0.0 differ by 0.0. Where the batch cannot be compared (``empty``, ``missing``, ``misaligned``, ``not_finite``) the
    figures are NaN and `num_tokens` is 0: parts of a batch make no statistics. `finding` says what is wrong, in the
    house form, `hints` what the evidence shows about the cause; both are empty where there is nothing to say.
    """

    status: Status
    num_tokens: int
    num_differing: int
    max: float
    p99: float
    mean: float
    first: FirstDifference | None = None
    finding: str = ""
    hints: tuple[str, ...] = ()

    @classmethod
    def refused(cls, status: Status, finding: str, first: FirstDifference | None = None) -> ParityResult:
        """Nothing was compared, for the reason in `finding`."""
        return cls(status, 0, 0, math.nan, math.nan, math.nan, first, finding)

    def metrics(self) -> dict[str, float]:
        """The figures under their published names."""
        return {
            "parity/max": self.max,
            "parity/p99": self.p99,
            "parity/mean": self.mean,
            "parity/frac_differing": self.num_differing / self.num_tokens if self.num_tokens else math.nan,
            "parity/num_tokens": float(self.num_tokens),
        }

    def evidence(self) -> Mapping[str, Any]:
        """All of it, as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        if self.status == "equal":
            return f"{self.num_tokens} tokens compared, every bit equal"
        return " ".join([self.finding, *(f"Hint: {hint}." for hint in self.hints)])


def differs(first: FirstDifference, num_differing: int, num_tokens: int) -> str:
    """The finding for bits that differ."""
    return message(
        f"logprob (rollout {first.rollout_id}, token {first.index})",
        f"trainer and engine must agree in every bit ({num_differing} of {num_tokens} tokens differ)",
        got=f"{first.trainer!r} ({first.trainer_bits}) from the trainer",
        expected=f"{first.sampler!r} ({first.sampler_bits}) from the engine",
        do=f"Look at {first.where()}",
    )
