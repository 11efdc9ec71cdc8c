"""Which settings broke the training, and which put it right: the auditor's names, and delta debugging to prove them.

In: a folder to run in. Out: a `Qualification` whose trials say what the auditor found, and what the gate did.

    trial     a short training with some of the settings put back; parity: every token's logprob is the trainer's
    baseline  the library's own engine, twice, and the service with all settings right: equal weights at the end
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

from examples.migration.settings import NAIVE, REFERENCE, changed, put_back
from examples.migration.training import Outcome, Training, train
from lockstep.errors import GateRefused
from lockstep.parity.qualify.qualification import Qualification
from lockstep.parity.qualify.restore import Workload, restore
from lockstep.parity.qualify.trial import Record, Trial

SHORT = Training(steps=4, prompts=8, generations=4, tokens_per_step=40, evaluated=1, audit=True)
"""Long enough for new weights to meet requests in flight and prefixes of old ones: some answers must be right, and some
wrong, or no weight moves."""


@dataclass(slots=True, eq=False)
class Trials:
    """Runs each trial in a folder of its own; `outcomes` by what was put back."""

    folder: Path
    training: Training = SHORT
    outcomes: dict[frozenset[str], Outcome] = field(default_factory=dict)

    def trial(self, kept: Collection[str]) -> Trial:
        """NEW with some settings put back."""
        name = frozenset(kept)
        self.outcomes[name] = found = train(self.training, put_back(name), self._place())
        return Trial(found.mismatch == 0.0, _figures(found))

    def baseline(self) -> Trial:
        """OLD against itself: do three runs of a correct engine end with equal weights, and without a mismatch?"""
        runs = [train(self.training, settings, self._place()) for settings in (None, None, REFERENCE)]
        same = len({run.digest for run in runs}) == 1 and not any(run.mismatch for run in runs)
        return Trial(same, _figures(runs[-1]))

    def _place(self) -> Path:
        return self.folder / f"trial{len(list(self.folder.glob('trial*')))}"


def qualify(trials: Trials, seen: Callable[[Record], None] = lambda _: None) -> Qualification:
    """The fewest settings that restore parity, every trial on record."""
    trials.folder.mkdir(parents=True, exist_ok=True)
    found = restore(changed(), Workload(trials.trial, trials.baseline, seen))
    facts = {"workload": f"{trials.training.steps} steps of GSPO, {trials.training.prompts} prompts a step"}
    return Qualification(found, "the reference engine", "the naive engine", facts)


def named(trials: Trials) -> dict[str, str | None]:
    """What the auditor calls each setting where it alone is wrong; None: it was not run, or has no name."""
    every = {difference.name for difference in changed()}
    found = {name: trials.outcomes.get(frozenset(every - {name})) for name in sorted(every)}
    return {name: cause(outcome) if outcome else None for name, outcome in found.items()}


def cause(outcome: Outcome) -> str | None:
    """The code that the auditor named."""
    return next((finding["code"] for finding in outcome.findings if finding["code"]), None)


def refused(folder: Path, training: Training = SHORT) -> str:
    """What the parity gate says of the naive engine when it may stop it; empty if it lets it train."""
    try:
        train(replace(training, gated=True), NAIVE, folder)
    except GateRefused as refusal:
        return str(refusal)
    return ""


def _figures(found: Outcome) -> dict[str, float | int | str | bool | None]:
    said = Counter(finding["status"] for finding in found.findings)
    return {
        "mean": found.mean,
        "max": found.mismatch,
        "tokens": int(found.tokens),
        "digest": found.digest,
        "audit": cause(found) or ("undetermined" if said else "parity"),
    }
