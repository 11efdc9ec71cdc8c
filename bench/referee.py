"""Nobody wins by doing less: what was drawn is counted, and scored by Lockstep's trainer under the same contract.

In: prompts, a contestant's tokens and logprobs of one round. Out: a `Sanity`, or `Unfair`.

Checked: every completion has the tokens that were asked for, all of them in the vocabulary; the logprobs that a
contestant reports are near the trainer's (a bf16 head comes to 0.03 on average, another distribution to 0.3 and more);
and the mean logprob of what each of them drew is that of the others, within what chance allows, for whoever cuts the
tail off, or samples at another temperature, draws likelier tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lockstep.config import RunConfig
from lockstep.core import Contract, Logprobs, Provenance, Rollout, SamplingParams
from lockstep.errors import StageError, message
from lockstep.models import Model
from lockstep.models.checkpoint import read_parameters
from lockstep.train import Trainer

MOST_DIFFERENCE = 0.1  # nats, mean over tokens
CHANCE = 5.0  # standard errors by which two mean logprobs may lie apart ...
ROUNDING = 0.05  # ... beside what a head in bf16 may move them


class Unfair(StageError):
    """A contestant did not do the work that was asked; the row has no result."""

    exit_code = 1


@dataclass(frozen=True, slots=True)
class Sanity:
    """Of one contestant: what it drew, in the trainer's eyes. Logprobs in nats; differences None: it reports none."""

    completions: int
    tokens: int
    distinct_tokens: int
    mean_logprob: float
    standard_error: float  # of mean_logprob, completions taken as independent
    mean_difference: float | None
    largest_difference: float | None


class Referee:
    """Scores tokens with the trainer's forward of one model."""

    def __init__(self, model: Model, config: RunConfig | None = None) -> None:
        import torch

        config = config or RunConfig()
        params = read_parameters(model.path, model.arch, getattr(torch, config.engine.dtype))
        self._trainer, self._head_dtype = Trainer(model, params, config), config.engine.head_dtype

    def judge(
        self, name: str, prompts: Sequence[Sequence[int]], answer: Mapping[str, Any], params: SamplingParams
    ) -> Sanity:
        """Look at one round of contestant `name`. Raises `Unfair`, `InputError` for tokens that the model lacks."""
        tokens, reported = answer["tokens"], answer.get("logprobs")
        counts = sorted({len(one) for one in tokens})
        asked = [params.max_tokens]
        if len(tokens) != len(prompts) or counts != asked:
            raise unfair(name, "it draws what was asked", f"{len(tokens)} x {counts}", f"{len(prompts)} x {asked}")
        rollouts = [self._rollout(i, *one, params) for i, one in enumerate(zip(prompts, tokens, strict=True))]
        scored = np.stack([logprobs.values for logprobs in self._trainer.score(rollouts)]).astype(np.float64)
        difference = None if reported is None else np.abs(np.array(reported, np.float64) - scored)
        if difference is not None and not difference.mean() < MOST_DIFFERENCE:  # NaN is unfair too
            got = f"{difference.mean():.3f} away on average"
            raise unfair(name, "its logprobs are those of what was asked", got, f"less than {MOST_DIFFERENCE}")
        return Sanity(
            len(tokens), scored.size, len({token for one in tokens for token in one}), float(scored.mean()),
            float(scored.mean(1).std(ddof=1) / math.sqrt(len(tokens))) if len(tokens) > 1 else 0.0,
            None if difference is None else float(difference.mean()),
            None if difference is None else float(difference.max()),
        )  # fmt: skip

    def _rollout(self, number: int, prompt: Sequence[int], tokens: Sequence[int], params: SamplingParams) -> Rollout:
        count = len(tokens)
        contract = Contract.of(params, self._head_dtype, (0,))
        zeros = (np.zeros(count, np.int32), np.zeros(count, np.uint8), np.zeros(count, np.bool_))
        return Rollout(
            f"{number}/0", str(number), np.array(prompt, np.int32), np.array(tokens, np.int32), "", "length", params,
            Logprobs(np.zeros(count, np.float32), contract), Provenance(*zeros),
        )  # fmt: skip


def require_alike(found: Mapping[str, Sanity]) -> None:
    """Raise `Unfair` if the mean logprob of a contestant lies apart from that of the first one by more than chance."""
    (first, ours), *others = found.items()
    for name, theirs in others:
        apart = abs(theirs.mean_logprob - ours.mean_logprob)
        most = ROUNDING + CHANCE * math.hypot(theirs.standard_error, ours.standard_error)
        if apart > most:
            got = f"a mean logprob of {theirs.mean_logprob:.3f}, {first} {ours.mean_logprob:.3f}"
            raise unfair(name, "everybody draws from one distribution", got, f"within {most:.3f}")


def unfair(name: str, rule: str, got: str, expected: str) -> Unfair:
    """The error about contestant `name`."""
    return Unfair(
        message(f"contestant ({name})", rule, got=got, expected=expected, do="Look at its script and its log")
    )
