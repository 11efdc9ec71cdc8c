"""Executes steps of a recorded run once more, and says whether every bit comes out again.

In: a run directory, which is only read. Out: a `Replay`.

    checkpoint, or initial model --> train on the recorded rollouts of each step --> weights of step K - 1
                                     (gate, scoring, corrections, minibatches)        compared step by step
    step K: advantages from the recorded rewards, every token drawn again, then trained and compared like the others

No engine runs. Each token is drawn from the logits that follow the *recorded* tokens before it, so if all of them are
drawn as recorded, then by induction sampling from the start would have given the same rollouts. What a replay does not
decide again is when the engine took up new weights: that is read from the rollouts' spans.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from lockstep.errors import InputError, message
from lockstep.kernels.allocator import give_back_freed_memory
from lockstep.models.pull import Progress as Pulled
from lockstep.pipeline.regrade import Regrader
from lockstep.pipeline.replay_result import Divergence, Replay, StepReplay
from lockstep.pipeline.replay_start import Progress, Starts, Student
from lockstep.pipeline.replay_step import Recorded, execute
from lockstep.trace import manifest
from lockstep.trace.run import RunDirectory
from lockstep.weight_update import WeightVersion

TRIM_EVERY = 4  # steps, as in the loop
SILENT = ("machine.memory_gib", "machine.platform")
"""Differences that move no bit: the size of the memory, the release of the kernel."""


@dataclass(frozen=True, slots=True)
class Options:
    """`from_start`: use no checkpoint, so that the warm start is run again too; `rewards`: grade again."""

    from_start: bool = False
    rewards: bool = False


class Replayer:
    """Replays one run, finished or not. `notes` says what differs here from where the run was made.

    Raises `InputError` and `ModelError` if the directory holds no run, or one whose model cannot be loaded.
    """

    def __init__(self, run: RunDirectory, options: Options, on_load: Pulled | None = None) -> None:
        self._run, self._options = run, options
        config, record = run.config(), run.manifest()
        self.published = _published(run)
        self.notes = _differences(record)
        if threads := config.threads or record.get("threads"):
            torch.set_num_threads(threads)  # a gradient's sums may be cut at other places with another number
        self._starts = Starts(run, config, self.published, on_load)
        self._regrader = Regrader(config, self._starts.model) if options.rewards else None

    def replay(self, asked: Sequence[int], progress: Progress) -> Replay:
        """Compare the steps `asked` for (none: all), in one pass. Stops at the first that comes out otherwise.

        Raises `InputError` for a step that the run has not, a rollout file that is missing or damaged, or another
        initial model.
        """
        wanted = self._wanted(asked)
        student = self._nearest(wanted[0] - 1, None, progress)
        origins, same = [student.origin], list[StepReplay]()
        found: Divergence | None = None
        for step in wanted:
            nearest = self._nearest(step - 1, student, progress)
            if nearest is not student:
                origins.append(nearest.origin)
            student, found = self._forward(nearest, step - 1, progress)
            if found is None:
                progress("replay", len(same), len(wanted))
                outcome = self._execute(student, step, tokens=True)
                if isinstance(outcome, StepReplay):
                    same.append(outcome)
                    student = replace(student, step=step)
                    continue
                found = outcome
            break
        progress("replay", len(same), len(wanted))
        unfit = [f"the checkpoint {path.name} is passed over: {why}" for path, why in self._starts.unfit.items()]
        return Replay(tuple(wanted), tuple(same), tuple(origins), found, (*self.notes, *unfit))

    def _forward(self, student: Student, behind: int, progress: Progress) -> tuple[Student, Divergence | None]:
        """Train until `behind` steps are behind; the tokens of these are not drawn again unless the gate refuses."""
        first = student.step + 1
        for step in range(first, behind + 1):
            outcome = self._execute(student, step, tokens=False)
            if isinstance(outcome, Divergence):
                return student, outcome
            progress(f"forward to step {behind}", step + 1 - first, behind + 1 - first)
        return replace(student, step=behind), None

    def _execute(self, student: Student, step: int, *, tokens: bool) -> StepReplay | Divergence:
        records = self._run.rollouts(step)
        found = execute(student, Recorded(step, records, self.published[step]), tokens=tokens)
        if step % TRIM_EVERY == 0:
            give_back_freed_memory()
        if found is not None:
            return found
        rewards = self._regrader.grade(step, records) if tokens and self._regrader is not None else None
        num_tokens = sum(len(record.rollout.token_ids) for record in records)
        return StepReplay(step, len(records), num_tokens, self.published[step].digest, rewards)

    def _nearest(self, behind: int, at_hand: Student | None, progress: Progress) -> Student:
        """The state to go on from, with at most `behind` steps in it."""
        found = None
        if not self._options.from_start:
            found = self._starts.checkpoint(behind, -1 if at_hand is None else at_hand.step)
        return found or at_hand or self._starts.initial(progress)

    def _wanted(self, asked: Sequence[int]) -> list[int]:
        wanted = sorted(set(asked)) or list(self.published)
        for step in wanted:
            if step not in self.published:
                raise InputError(
                    message(f"step ({step})", "a step that is replayed is one of the run", got=step,
                            expected=f"1 to {len(self.published)}", do="Give steps that metrics.jsonl has a line of")
                )  # fmt: skip
        return wanted


def _published(run: RunDirectory) -> Mapping[int, WeightVersion]:
    """The version that each step of the run published, by the lines of its metrics."""
    lines = run.metrics()
    steps = [line["step"] for line in lines]
    if not steps or steps != list(range(1, len(steps) + 1)):
        got = f"{len(steps)} lines{f', the last of step {steps[-1]}' if steps else ''}"
        raise _unfit(run, "a replay needs every step from the first", got, "lines of steps 1, 2, 3, ...")
    bare = [line["step"] for line in lines if "weight_digest" not in line or "weight_version" not in line]
    if bare:
        raise _unfit(run, "a replay needs the digest of every step's weights", f"none at step {bare[0]}", "one a line")
    return {line["step"]: WeightVersion(line["weight_version"], line["weight_digest"]) for line in lines}


def _unfit(run: RunDirectory, rule: str, got: str, expected: str) -> InputError:
    do = "Give a run that has taken a step, and its whole metrics.jsonl"
    return InputError(message(f"run ({run.path})", rule, got=got, expected=expected, do=do))


def _differences(record: Mapping[str, object]) -> tuple[str, ...]:
    """What may honestly give other bits, in words."""
    changes = {name: pair for name, pair in manifest.changes(record).items() if name not in SILENT}
    notes = [f"{name} is {now}, and was {then} in the run: bits may differ" for name, (then, now) in changes.items()]
    resumed = record.get("resumed")
    for entry in resumed if isinstance(resumed, list) else []:
        names = [name for name in entry["changed"] if name not in SILENT]
        if names:
            notes.append(f"the run went on after step {entry['after_step']} with other {', '.join(names)}")
    return tuple(notes)
