"""Trains one recorded step again and compares, in the order of cause and effect, what comes out.

In: a learner with the weights before the step, the step's records. Out: None, or the first `Divergence`; then the
learner has the weights after the step.

    rollouts  -->  advantages  -->  tokens, logprobs   -->  gate  -->  trainer logprobs  -->  weights
    of this step   from rewards     drawn again (`redraw`)  of pipeline.update               digest
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lockstep import numerics
from lockstep.core import Logprobs, Path, Rollout
from lockstep.errors import ContractError, InputError, NumericsError
from lockstep.pipeline.metrics import Stopwatch
from lockstep.pipeline.regrade import groups_of
from lockstep.pipeline.replay_result import Divergence, Place
from lockstep.pipeline.update import Learner, update
from lockstep.rewards import advantages
from lockstep.trace.rollouts import RolloutRecord
from lockstep.train.batch import Batch
from lockstep.train.redraw import first_divergence, redraw
from lockstep.train.replay import SpanScorer
from lockstep.weight_update import WeightVersion

ALTERED = "Look whether the file was changed after the run"


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """What is known of a step: its number, its rollouts with what was decided about them, the version it published."""

    step: int
    records: Sequence[RolloutRecord]
    version: WeightVersion

    @property
    def rollouts(self) -> list[Rollout]:
        return [record.rollout for record in self.records]


def execute(learner: Learner, recorded: Recorded, *, tokens: bool) -> Divergence | None:
    """Train the step again. With `tokens`, every token is drawn again first; without, only if the gate refuses.

    Whatever the recorded rollouts make our own code refuse (spans that cannot be true, a token outside its support, a
    gradient that is not finite) is a divergence too: the run itself was not refused there.
    """
    found = _of_this_step(learner, recorded) or _advantages(learner, recorded)
    if found is not None:
        return found
    try:
        return (_drawn(learner, recorded) if tokens else None) or _trained(learner, recorded)
    except (InputError, ContractError, NumericsError) as cause:
        return Divergence(recorded.step, "rollouts", str(cause), "what the run trained on", ALTERED)


def _of_this_step(learner: Learner, recorded: Recorded) -> Divergence | None:
    """The file holds as many rollouts of this step as a step has, of weights that were there by then."""
    config, step = learner.config, recorded.step
    steps = sorted({record.step for record in recorded.records})
    size = config.num_prompts_per_step * config.num_generations
    if steps != [step] or len(recorded.records) != size:
        got = f"{len(recorded.records)} rollouts of step {' and '.join(map(str, steps)) or 'none'}"
        return Divergence(step, "rollouts", got, f"{size} of step {step}", ALTERED)
    held = learner.history.by_number
    for rollout in recorded.rollouts:
        origin = rollout.provenance
        numbers = {*origin.weight_version.tolist(), *(span.version for span in origin.spans)}
        if strange := sorted(numbers - set(held)):
            got = f"tokens or keys of weight version {strange[0]}"
            expected = f"of one of {', '.join(map(str, held))}"
            return Divergence(step, "rollouts", got, expected, ALTERED, rollout.id)
    return None


def _advantages(learner: Learner, recorded: Recorded) -> Divergence | None:
    """Advantages are a function of the recorded rewards, whatever the reward function says today."""
    records = recorded.records
    rewards = [record.reward.value if record.reward is not None else None for record in records]
    try:
        gains = advantages(rewards, groups_of(records), learner.config.loss.advantage).values
    except NumericsError as cause:
        return Divergence(recorded.step, "advantage", str(cause), "finite rewards", ALTERED)
    for record, gain in zip(records, gains, strict=True):
        if record.advantage is None or np.float64(gain).tobytes() != np.float64(record.advantage).tobytes():
            got, expected = repr(float(gain)), repr(record.advantage)
            return Divergence(recorded.step, "advantage", got, expected, ALTERED, record.rollout.id)
    return None


def _drawn(learner: Learner, recorded: Recorded) -> Divergence | None:
    """Every token again, from the weights, keys and random numbers of the time."""
    limit = learner.config.train.max_tokens_per_microbatch
    scorer = SpanScorer(learner.trainer.forward, learner.history.by_number, limit)
    found = first_divergence(recorded.rollouts, redraw(scorer, recorded.rollouts))
    if found is None:
        return None
    place = Place(found.index, found.position, found.path, found.version)
    do = "Look at this token"
    return Divergence(recorded.step, found.what, found.got, found.expected, do, found.rollout_id, place)


def _trained(learner: Learner, recorded: Recorded) -> Divergence | None:
    """The step itself, through the same gate and the same update as in the run."""
    values = np.array([record.advantage for record in recorded.records], np.float32)
    batch = Batch(tuple(recorded.rollouts), values, learner.config.loss.normalize)
    outcome = update(learner, batch, recorded.step, Stopwatch())
    if not outcome.decision.admitted:
        refused = Divergence(recorded.step, "gate", outcome.decision.reason, "an admitted step", "Look at this token")
        return _drawn(learner, recorded) or refused
    trainer = learner.trainer
    learner.history.add(trainer.version, trainer.snapshot())
    return _scored(recorded, outcome.scored) or _weights(recorded, trainer.version)


def _scored(recorded: Recorded, scored: Sequence[Logprobs]) -> Divergence | None:
    for record, now in zip(recorded.records, scored, strict=True):
        rollout, then = record.rollout, record.trainer_logprobs
        if then is None or then.values.shape != now.values.shape or then.contract != now.contract:
            got = f"{len(now)} of {now.contract}"
            expected = "none" if then is None else f"{len(then)} of {then.contract}"
            return Divergence(recorded.step, "trainer logprob", got, expected, ALTERED, rollout.id)
        unequal = now.values.view(np.int32) != then.values.view(np.int32)
        if unequal.any():
            at = int(np.argmax(unequal))
            origin = rollout.provenance
            path = int(origin.path[at])
            place = Place(
                at, len(rollout.prompt_ids) + at, Path.label(path),
                int(origin.weight_version[at]),
            )  # fmt: skip
            got, expected = numerics.exact(now.values[at : at + 1]), numerics.exact(then.values[at : at + 1])
            return Divergence(recorded.step, "trainer logprob", got, expected, ALTERED, rollout.id, place)
    return None


def _weights(recorded: Recorded, now: WeightVersion) -> Divergence | None:
    then = recorded.version
    if now == then:
        return None
    do = "Everything before the update was the same: compare machine, versions and threads with the manifest's"
    got, expected = (f"version {v.number}, digest {v.digest}" for v in (now, then))
    return Divergence(recorded.step, "weights", got, expected, do)
