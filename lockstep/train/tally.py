"""What the microbatches of one batch add up to: logprobs in the batch's order, and metrics under their published names.

In: per-token results, microbatch by microbatch. Out: one array a rollout, a dict of metrics.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lockstep.train.batch import Batch, Packed
from lockstep.train.ledger import Entry
from lockstep.train.losses import ratio_metrics
from lockstep.train.policy_loss import PolicyLoss


@dataclass(slots=True)
class Tally:
    """Sums in float64. `seconds` per stage, keyed by the metric's name."""

    loss: float = 0.0
    seconds: dict[str, float] = field(default_factory=lambda: {"time/forward": 0.0, "time/backward": 0.0})
    entries: list[Entry] = field(default_factory=list)  # of the ledger; none without a correction
    _logprobs: dict[int, np.ndarray] = field(default_factory=dict)
    _clipped: list[np.ndarray] = field(default_factory=list)
    _divergence: list[np.ndarray] = field(default_factory=list)
    _entropy: float = 0.0

    def add(self, packed: Packed, logprobs_N: Tensor, entropy_N: Tensor, policy: PolicyLoss) -> None:
        """Take in the results of a microbatch."""
        pieces = packed.split(logprobs_N.detach().cpu().numpy())
        self._logprobs |= dict(zip(packed.index, pieces, strict=True))
        self._clipped.append(policy.clipped_N.cpu().numpy())
        self._entropy += float(entropy_N.sum(dtype=torch.float64))
        if policy.entry is not None:
            self.entries.append(policy.entry)

    def add_divergence(self, divergence_N: Tensor) -> None:
        """Take in the KL estimate per token of a microbatch."""
        self._divergence.append(divergence_N.detach().cpu().numpy())

    def logprobs(self, batch: Batch) -> list[np.ndarray]:
        """Trainer logprobs float32, one array a rollout, in the order of the batch."""
        assert self._logprobs.keys() == set(range(len(batch.rollouts))), "every rollout is scored once"
        return [self._logprobs[i] for i in range(len(batch.rollouts))]

    def metrics(self, batch: Batch) -> dict[str, float]:
        """Token means over the whole batch, whatever the microbatches were."""
        sampler = np.concatenate([rollout.sampler_logprobs.values for rollout in batch.rollouts])
        means = ratio_metrics(np.concatenate(self.logprobs(batch)), sampler, np.concatenate(self._clipped))
        if self._divergence:
            means["kl"] = float(np.concatenate(self._divergence).mean(dtype=np.float64))
        return {
            "loss": self.loss,
            "entropy": self._entropy / batch.num_tokens,
            "groups_without_signal": float(batch.groups_without_signal),
            **means,
            **self.seconds,
        }
