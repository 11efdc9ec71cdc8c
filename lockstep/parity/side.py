"""The two seams of an audit: the engine that is looked at, and the reference that can assume anything.

In: nothing of ours but nouns. Out: `Subject`, `Reference`, and the error of what cannot be asked. An audit knows no
engine and no trainer but through these, so it treats everybody's alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np

from lockstep.core import Request
from lockstep.errors import InputError
from lockstep.parity.hypothesis import Hypothesis
from lockstep.parity.observation import Sample, Statement

Capability = Literal["sample", "score", "update", "reset", "seeded"]
"""``sample``: draws tokens. ``score``: gives logprobs of tokens it is handed (its prefill path). ``update``: takes
weights again. ``reset``: empties its prefix cache. ``seeded``: equal requests give equal tokens."""


class CannotAsk(InputError):
    """A subject or reference was asked for something that it cannot do; the probe abstains."""


class Subject(Protocol):
    """An engine, alive. Every method may raise `CannotAsk`, and `LockstepError` if the engine fails."""

    @property
    def can(self) -> frozenset[Capability]: ...

    def state(self) -> Statement:
        """What it says of itself, now."""
        ...

    def sample(self, requests: Sequence[Request]) -> list[Sample]:
        """Completions of all requests in one batch, in their order; `Sample.trainer` is None."""
        ...

    def score(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """float32 [T] each: its logprobs of the tokens by way of its prefill."""
        ...

    def update(self, version: int) -> None:
        """Install the weights of `version` (that the publisher holds) once more, by the subject's own way."""
        ...

    def reset(self) -> None:
        """Ask for the prefix cache to be emptied."""
        ...


class Reference(Protocol):
    """Weights of all recent versions, and the one model definition."""

    @property
    def versions(self) -> tuple[int, ...]:
        """Numbers of the weights that are held, ascending."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Names of weights that are held under a word (see `Weights.name`)."""
        ...

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters, in the order of the network; the last is the head."""
        ...

    def score(self, samples: Sequence[Sample], hypothesis: Hypothesis) -> list[np.ndarray]:
        """float32 [T] each: logprobs of `token_ids` under the samples' contract with the flipped factors.

        Raises `CannotAsk` for a version or factor that it lacks.
        """
        ...
