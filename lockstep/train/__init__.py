"""Training: batches, objectives, the optimizer, and the trainer that steps only when a gate has admitted the step.

In: rollouts with advantages, decisions. Out: trainer logprobs, at the present weights or at those that sampled, new
weight versions, checkpoints.
"""

from __future__ import annotations

from lockstep.train.batch import Batch
from lockstep.train.history import WeightHistory
from lockstep.train.replay import SpanScorer
from lockstep.train.trainer import Proposal, StepResult, Trainer

__all__ = ["Batch", "Proposal", "SpanScorer", "StepResult", "Trainer", "WeightHistory"]
