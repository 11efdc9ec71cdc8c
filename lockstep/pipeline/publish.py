"""New weights on their way from the trainer to the engine, and to those who will have to explain old tokens.

In: the parts of a run. Out: an engine that serves the trainer's weights, and a history that holds them.

One copy is made; engine and history share it. Old versions stay for as long as tokens of them may still be trained on,
because the gate asks what the trainer would have said *then*.
"""

from __future__ import annotations

from lockstep.pipeline.assembly import Parts
from lockstep.weight_update import UpdatePolicy


def publish(parts: Parts) -> None:
    """Give the engine the trainer's weights; requests in flight go on. Raises what `Engine.update_weights` raises."""
    config, trainer = parts.config, parts.trainer
    oldest = trainer.version.number - config.pipeline.max_lag * config.train.num_minibatches
    policy = UpdatePolicy("keep", config.pipeline.kv, max(oldest, 0))
    snapshot = trainer.snapshot()
    parts.engine.update_weights(snapshot, trainer.version, policy, share=True, probe=trainer.probe())
    parts.history.add(trainer.version, snapshot)
