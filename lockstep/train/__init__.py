"""Training: batches, objectives, the optimizer, and the trainer that steps only when a gate has admitted the step.

In: rollouts with advantages, decisions. Out: trainer logprobs, new weight versions, checkpoints.
"""

from __future__ import annotations

from lockstep.train.batch import Batch
from lockstep.train.trainer import Proposal, StepResult, Trainer

__all__ = ["Batch", "Proposal", "StepResult", "Trainer"]
