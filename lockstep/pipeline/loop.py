"""The loop: every step trains on the oldest rollouts that are whole, and gives the engine new weights.

    tasks --prompts--> engine --rollouts--> buffer --a batch--> grader --rewards--> advantages --> batch
                         ^       (none too old)                                                   | propose
                         |                                     trainer logprobs                   v
                         |  admitted                        parity gate <--------------------- trainer
                         +---- new weights, new version -------- | --- step --------------------^
                                                                 | refused
                                                                 v
                                            batch kept for inspection, run stops, exit code 1

`pipeline.max_lag` 0 is the synchronous loop: a batch is asked for when the one before it has been trained on. With
more, the engine has up to `max_lag` further batches in hand, and what is in flight at an update goes on under the new
weights. With the inline executor engine and trainer take turns, and all of it is a pure function of the configuration:
requests are keyed by (seed, step, place), and nothing is in flight at a checkpoint, so that a killed run that resumes
ends with the bits of one that was not.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from lockstep.core import Decision
from lockstep.errors import GateRefused, Interrupted, StageError, message
from lockstep.kernels.allocator import give_back_freed_memory
from lockstep.models.checkpoint import write_model
from lockstep.pipeline.assembly import Parts
from lockstep.pipeline.evaluate import evaluate
from lockstep.pipeline.interrupt import StopRequest
from lockstep.pipeline.metrics import (
    Stopwatch,
    buffer_metrics,
    completion_metrics,
    peak_memory_gb,
    reward_metrics,
)
from lockstep.pipeline.publish import publish
from lockstep.pipeline.sampling import Sampling
from lockstep.pipeline.update import update
from lockstep.pipeline.warm_start import warm_start
from lockstep.pipeline.watch import Watch, with_cause
from lockstep.rewards import Grade, advantages
from lockstep.trace.observer import Observer
from lockstep.trace.rollouts import RolloutRecord
from lockstep.trace.run import RunDirectory
from lockstep.train import checkpoint
from lockstep.train.batch import Batch

TRIM_EVERY = 4  # steps; a batch of other lengths leaves other gaps in the heap
WINDOW = 5  # steps over which the summary averages the reward at either end of the run


class Loop:
    """One run, from its start or its last checkpoint to its end."""

    def __init__(self, parts: Parts, run: RunDirectory, observer: Observer) -> None:
        self._parts, self._run, self._observer = parts, run, observer
        self._config = parts.config
        self._stop = StopRequest()
        self._sampling = Sampling(parts)
        self._watch = Watch(parts.trainer, parts.history, run.path / "parity") if parts.config.parity.audit else None
        self._done = 0  # whole steps behind us
        self._saved: int | None = None  # step of the newest checkpoint

    def run(self) -> dict[str, Any]:
        """Go on to the last step; returns the summary. However it ends, the run directory says how.

        Raises `GateRefused` (a step was refused), `Interrupted` (says which steps are kept), or what went wrong.
        """
        started = time.perf_counter()
        finished = False
        try:
            with self._stop.listening():
                self._restore()
                about = {**self._parts.manifest, "directory": str(self._run.path)}
                self._observer.on_start(self._config, self._run.update_manifest(about))
                self._all_steps()
            finished = True
        finally:
            outcome = "finished" if finished else _outcome(sys.exception())
            summary = self._summary(outcome, str(sys.exception() or ""), time.perf_counter() - started)
            self._run.finish(outcome, summary)
            self._observer.on_end(summary)
            self._parts.close()
        return summary

    def _all_steps(self) -> None:
        parts = self._parts
        if self._done == 0 and self._saved is None:
            self._warm_start()
        try:
            while True:
                if self._evaluation_due():
                    self._evaluate()
                if self._done >= self._config.max_steps:
                    break
                self._step(self._done + 1)
                self._done += 1
                if self._done % TRIM_EVERY == 0:
                    give_back_freed_memory()
                if self._steps_to_checkpoint() == 0:
                    self._checkpoint()
        except Interrupted:
            if self._config.pipeline.max_lag > 0:  # a checkpoint is where nothing is in flight
                raise Interrupted(self._done_again()) from None
            self._checkpoint()
            raise
        finally:
            self._sampling.abandon()
        write_model(self._run.weights(self._done), parts.trainer.params, parts.model.arch, parts.model)

    def _done_again(self) -> str:
        kept = f"those up to step {self._saved} are kept" if self._saved else "none is kept"
        return f"interrupted after {self._done} steps: {kept}, --resume does the others again"

    def _steps_to_checkpoint(self) -> int:
        every = self._config.train.checkpoint_every
        return min(-self._done % every, self._config.max_steps - self._done)

    def _evaluation_due(self) -> bool:
        every = self._config.eval.every
        return self._done in (0, self._config.max_steps) or (every > 0 and self._done % every == 0)

    def _step(self, step: int) -> None:
        """One turn of the loop. Until the trainer's step nothing has changed, so an `Interrupted` loses nothing."""
        config, parts, watch = self._config, self._parts, Stopwatch()
        ahead = self._steps_to_checkpoint() or min(config.train.checkpoint_every, config.max_steps - self._done)
        with watch.stage("rollout"):
            groups = self._sampling.collect(ahead, lambda done, total: self._progress("rollout", done, total))
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        places = [place for place, group in enumerate(groups) for _ in group.rollouts]
        problems = self._sampling.tasks(groups)
        with watch.stage("reward"):
            grades = parts.rewarder.grade([problems[place] for place in places], rollouts)
            gains = advantages([grade.reward.value for grade in grades], places, config.loss.advantage)
        if gains.undecided.all():
            self._undecided(step, grades)
        self._stop.check()
        batch = Batch(tuple(rollouts), gains.values, config.loss.normalize)
        outcome = update(parts, batch, step, watch)
        texts = [parts.model.tokenizer.decode(rollout.prompt_ids.tolist()) for rollout in rollouts]
        records = [
            RolloutRecord(step, rollout, text, grade.reward, float(gain), logprobs, grade.verdict)
            for rollout, text, grade, gain, logprobs in zip(
                rollouts, texts, grades, gains.values, outcome.scored, strict=True
            )
        ]
        with watch.stage("audit"):
            finding = self._watch.look(step, batch, outcome) if self._watch else None
        if not outcome.decision.admitted:
            self._refuse(step, with_cause(outcome.decision, finding) if finding else outcome.decision, records)
        with watch.stage("publish"):
            publish(parts)
        with watch.stage("trace"):
            self._run.write_rollouts(step, records)
        self._report(
            {
                "step": step,
                **reward_metrics(grades, gains),
                **completion_metrics(rollouts),
                **outcome.metrics,
                **buffer_metrics(self._sampling.buffer),
                **watch.metrics(batch.num_tokens, ahead=config.pipeline.max_lag > 0),
            }
        )

    def _report(self, metrics: dict[str, Any]) -> None:
        version = self._parts.trainer.version
        known = {"memory/peak_gb": peak_memory_gb(), "weight_version": version.number, "weight_digest": version.digest}
        self._run.append(metrics | known)
        self._observer.on_step(metrics["step"], metrics | known)

    def _progress(self, phase: str, done: int, total: int) -> None:
        self._stop.check()
        self._observer.on_phase(phase, done, total)

    def _undecided(self, step: int, grades: Sequence[Grade]) -> NoReturn:
        """A step without a single reward teaches nothing; a reward function that always fails would hide behind it."""
        verdict = grades[0].verdict
        raise StageError(
            message(
                f"reward (step {step})",
                "some rollout must be decided",
                got=f"none of {len(grades)}; the first: {f'{verdict.code} {verdict.witness}' if verdict else 'None'}",
                expected="a number",
                do="Mend the check or the reward function; the run resumes with --resume",
            )
        )

    def _refuse(self, step: int, decision: Decision, records: Sequence[RolloutRecord]) -> NoReturn:
        kept = self._run.write_refusal(step, decision, records)
        audit = decision.evidence.get("audit")
        cause = f"{audit['verdict']}. " if audit else ""
        raise GateRefused(
            message(
                f"parity gate (step {step})",
                "no optimizer step on logprobs that are not the trainer's",
                got=decision.reason,
                expected="equal bits on every token",
                do=f"{cause}Nothing was changed. The decision and its batch are kept: {kept}",
            )
        )

    def _warm_start(self) -> None:
        config, parts = self._config, self._parts
        if not config.warm_start.steps:
            return

        def on_step(done: int, total: int) -> None:
            self._progress("warm start", done, total)

        warm_start(config, parts.model, parts.tasks, parts.trainer, on_step)
        publish(parts)
        self._checkpoint()  # so that a run killed before its next one need not warm up again

    def _evaluate(self) -> None:
        """Accuracy on the held-out problems, greedy and as in training, unless it is known from before a resume."""
        if any(line["step"] == self._done for line in self._run.evaluations()):
            return
        found = evaluate(self._parts, lambda done, total: self._progress("eval", done, total))
        metrics = {"step": self._done, **found}
        self._run.append_evaluation(metrics)
        self._observer.on_step(self._done, metrics)

    def _checkpoint(self) -> None:
        if self._saved != self._done:
            extra = {"next_group": self._sampling.buffer.first_number}
            checkpoint.save(self._run.checkpoints, self._parts.trainer, self._done, extra)
            self._saved = self._done

    def _restore(self) -> None:
        """Take up the newest checkpoint, if there is one; what the run wrote after it is forgotten and done again."""
        newest = checkpoint.latest(self._run.checkpoints)
        if newest is not None:
            state = checkpoint.load(newest, self._parts.trainer)
            self._done = self._saved = state.step
            self._sampling.buffer.restart(state.extra.get("next_group", self._done * self._config.num_prompts_per_step))
            publish(self._parts)
        self._run.truncate_after(self._done)

    def _summary(self, outcome: str, reason: str, seconds: float) -> dict[str, Any]:
        lines = self._run.metrics()
        evaluations = {line["step"]: line for line in self._run.evaluations()}
        before, last = evaluations.get(0, {}), evaluations[max(evaluations)] if evaluations else {}
        after = last if last.get("step") else {}
        rewards = [line["reward"] for line in lines if line["reward"] is not None]
        ends = {"reward_start": rewards[:WINDOW], "reward_end": rewards[-WINDOW:]}
        return {
            "outcome": outcome,
            "reason": reason,
            "steps": self._done,
            "seconds": seconds,
            **{name: sum(values) / len(values) if values else None for name, values in ends.items()},
            "accuracy_before": before.get("eval/accuracy"),
            "accuracy_after": after.get("eval/accuracy"),
            "sampled_accuracy_before": before.get("eval/sampled_accuracy"),
            "sampled_accuracy_after": after.get("eval/sampled_accuracy"),
            "parity_max": float(np.max([line["parity/max"] for line in lines])) if lines else None,  # NaN stays NaN
            "parity_tokens": int(sum(line["parity/num_tokens"] for line in lines)),
            "gated": self._config.parity.gate,
            "peak_memory_gb": peak_memory_gb(),
            "weights": str(self._run.weights(self._done)) if outcome == "finished" else None,
            "directory": str(self._run.path),
            "report": str(self._run.report_file) if "html" in self._config.report_to else None,
        }


def _outcome(cause: BaseException | None) -> str:
    if isinstance(cause, GateRefused):
        return "refused"
    return "interrupted" if isinstance(cause, Interrupted | KeyboardInterrupt) else "failed"
