"""What a replay found: which steps came out the same, and the first thing that did not.

In: what was recorded and what came out now. Out: values for people (`str`, `summary`) and for programs (`asdict`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lockstep.errors import message
from lockstep.pipeline.regrade import Regrade

Kind = Literal["rollouts", "advantage", "token", "logprob", "support", "gate", "trainer logprob", "weights"]

RULES: Mapping[Kind, str] = {
    "rollouts": "a step trains on rollouts that the run could have drawn",
    "advantage": "it must follow from the recorded rewards",
    "token": "running it again must give the same token",
    "logprob": "running it again must give the same bits",
    "support": "running it again must keep the same tokens",
    "gate": "a step that was taken must be admitted again",
    "trainer logprob": "scoring it again must give the same bits",
    "weights": "training the step again must give the weights that it published",
}
"""What must hold, in the order in which it is looked at."""


@dataclass(frozen=True, slots=True)
class Place:
    """A token: its `index` in the completion, `position` in the sequence, the path and the weights that drew it."""

    index: int
    position: int
    path: str
    version: int


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first thing that a replay found otherwise. `got` came out now, `expected` is recorded; floats with bits."""

    step: int
    what: Kind
    got: str
    expected: str
    do: str
    rollout_id: str = ""
    place: Place | None = None

    def __str__(self) -> str:
        where = f"step {self.step}"
        where += f", rollout {self.rollout_id}" if self.rollout_id else ""
        do = self.do
        if self.place is not None:
            where += f", token {self.place.index}"
            do += f" (position {self.place.position}, path {self.place.path}, weight version {self.place.version})"
        return message(f"{self.what} ({where})", RULES[self.what], got=self.got, expected=self.expected, do=do)


@dataclass(frozen=True, slots=True)
class StepReplay:
    """A step of which everything came out as recorded; `digest` is that of the weights it gave."""

    step: int
    rollouts: int
    tokens: int
    digest: str
    rewards: Regrade | None = None


@dataclass(frozen=True, slots=True)
class Replay:
    """`asked` are the steps that were to be compared, `steps` those that were the same, in order.

    `starts` says in words from where steps were trained again, `notes` what else the user should know.
    """

    asked: tuple[int, ...]
    steps: tuple[StepReplay, ...]
    starts: tuple[str, ...]
    divergence: Divergence | None
    notes: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether all that was asked for came out bit for bit."""
        return self.divergence is None

    def summary(self) -> str:
        """The last word: how many steps, and what happened; a second line if rewards are others now."""
        counted = f"{len(self.steps)} of {len(self.asked)} steps"
        if self.divergence is None:
            first = f"{counted} replayed: tokens, logprobs and weights are the same, bit for bit"
        else:
            first = f"{counted} are the same. The first divergence: {self.divergence}"
        return "\n".join([first, *_about_rewards([s for s in self.steps if s.rewards is not None])])

    def plain(self) -> dict[str, Any]:
        """All of it, and `equal`, `summary`, for JSON."""
        return {"equal": self.equal, "summary": self.summary()} | {
            name: getattr(self, name) for name in self.__dataclass_fields__
        }


def _about_rewards(steps: Sequence[StepReplay]) -> list[str]:
    """A line about rewards that were given again; none if that was not asked for."""
    found = [step.rewards for step in steps if step.rewards is not None]
    if not found:
        return []
    graded, others = sum(f.graded for f in found), sum(f.rewards for f in found)
    if not others:
        return [f"rewards and advantages: {graded:,} of {graded:,} rollouts are graded the same again"]
    first = next(f for f in found if f.rewards)
    cause = "the reward function is not deterministic" if not first.steady else "the reward function gives others now"
    advantages = sum(f.advantages for f in found)
    counts = f"{others:,} of {graded:,} are others now, and {advantages:,} advantages with them"
    return [f"rewards: {counts}; {cause}. The first: {first.first}"]
