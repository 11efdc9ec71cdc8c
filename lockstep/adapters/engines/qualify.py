"""Qualification of live engines: each trial opens the new one with some settings put back, and audits it.

In: words for OLD, NEW and a scorer, a model, workloads. Out: a `Qualification`, and the smallest failing case.

    trial = NEW, settings put back, fresh weights -> for each temperature: draw, score, new weights, draw, score
    baseline = the same with OLD

Parity is what an audit says. If every bit of OLD is the scorer's, every bit of NEW has to be: noise is no excuse then.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lockstep.adapters.engines.audit import Audit
from lockstep.adapters.engines.opening import guarded, opened
from lockstep.adapters.engines.publisher import Publisher
from lockstep.adapters.engines.resolved import Configurations, put_back, shared
from lockstep.adapters.engines.spec import Spec
from lockstep.adapters.engines.workload import Workload
from lockstep.errors import InputError, Interrupted, LockstepError, StageError, message
from lockstep.models import Model
from lockstep.parity.evidence import Finding
from lockstep.parity.observation import Observation, Sample, Statement
from lockstep.parity.qualify import restore as search
from lockstep.parity.qualify.case import Completion
from lockstep.parity.qualify.qualification import Qualification, kept_in_words, nats
from lockstep.parity.qualify.restoration import Restoration
from lockstep.parity.qualify.trial import Figure, Record, Trial

MOST_FAILURES = 3
"""Trials without an answer because a side failed, after which the search ends."""

Announce = Callable[[str], None]
Kept = frozenset[str]


@dataclass(frozen=True, slots=True)
class Failing:
    """The completion on which NEW as it is differs most; which workload (from 0) and which step of it."""

    completion: Completion
    workload: int
    step: int


@dataclass(slots=True, eq=False)
class Qualifier:
    """One pair. `workloads` are run one after the other with the same engine; `folder`: for logs of engines.

    `models`: those that OLD and NEW name. `scorer` None: Lockstep's trainer in the dtype of OLD.
    """

    specs: tuple[Spec, Spec]
    scorer: Spec | None
    models: tuple[Model, Model]
    workloads: Sequence[Workload]
    folder: Path
    announce: Announce = lambda _: None
    failing: Failing | None = None
    failures: list[str] = field(default_factory=list)
    exact: bool = False
    _found: Configurations | None = None
    _trials: int = 0

    @property
    def configurations(self) -> Configurations:
        """Both sides, each opened once and asked. Raises `LockstepError` if one does not open or cannot draw."""
        if self._found is None:
            prompts = [[w.prompts, w.steps, w.floor, w.params.n, w.params.max_tokens] for w in self.workloads]
            said, common = [], []
            for name, spec, model in zip(("OLD", "NEW"), self.specs, self.models, strict=True):
                self.announce(f"{name}: {spec}")
                with guarded(spec), tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
                    publisher = Publisher(model, Path(folder))
                    side = opened(spec, publisher, stack, self.folder / name.lower(), self.announce)
                    _check_draws(spec, side.can)
                    said.append(side.state())
                    digest = str(publisher.statement().digest)
                common.append(shared(model, digest, prompts, self.workloads[0].seed))
            self._found = Configurations.of(self.specs, (said[0], said[1]), tuple(common))
            self.scorer = self.scorer or _trainer(self.specs[0], said[0], self.models[0])
        return self._found

    def run(
        self, seen: Callable[[Record], None], known: Sequence[Record], counting: int = search.COUNTING
    ) -> Restoration:
        """Search. `known`: of an earlier run; those without an answer are tried again.

        Raises `StageError` when too many trials failed.
        """

        def note(record: Record) -> None:
            if record.kept is None:
                self.exact = record.trial.figures.get("differing") == 0
            seen(record)

        workload = search.Workload(self._of_new, self._of_old, note)
        answered = [record for record in known if record.trial.parity is not None]
        return search.restore(self.configurations.differences, workload, known=answered, counting=counting)

    def partial(self, records: Sequence[Record]) -> Restoration:
        """What is known when a search was cut off."""
        found = self.configurations.differences
        return Restoration("undetermined", found, tuple(records), search.bound(len(found)))

    def qualification(
        self, found: Restoration, facts: Mapping[str, str], figures: Mapping[str, Figure]
    ) -> Qualification:
        """With what is known of the two sides."""
        judged = "every bit, as OLD is the scorer's in every bit" if self.exact else "noise floor of the scorer"
        other = {
            f"not put back: {name}": f"{old} in OLD, {new} in NEW"
            for name, (old, new) in self.configurations.elsewhere.items()
        }
        told = {"scorer": str(self.scorer), "judged by": judged, **other, **facts}
        return Qualification(found, str(self.specs[0]), str(self.specs[1]), told, figures)

    def _of_old(self) -> Trial:
        return self._trial(self.specs[0], self.models[0], None)

    def _of_new(self, kept: Kept) -> Trial:
        return self._trial(put_back(self.specs[1], self.configurations.old, kept), self.models[1], kept)

    def _trial(self, spec: Spec, model: Model, kept: Kept | None) -> Trial:
        """One run; a side that fails gives no answer, and is told of."""
        self._trials += 1
        what = kept_in_words(kept, self.configurations.differences)
        self.announce(f"trial {self._trials}: {what if kept is None else f'NEW, put back: {what}'}")
        started = time.perf_counter()
        try:
            with guarded(spec, self.scorer):
                trial, worst = self._audited(spec, model)
        except Interrupted:
            raise
        except LockstepError as error:
            trial, worst = self._failed(what, error), None
        if kept == frozenset() and worst is not None:
            self.failing = worst
        seconds = round(time.perf_counter() - started, 1)
        cause = f" ({trial.figures['cause']})" if trial.figures.get("cause") else ""
        self.announce(f"  {trial.outcome}{cause}, mean {nats(trial.mean)} nats, {seconds:.1f} s")
        return replace(trial, figures={**trial.figures, "seconds": seconds})

    def _failed(self, what: str, error: LockstepError) -> Trial:
        self.failures.append(str(error))
        self.announce(f"  failed: {error}")
        if len(self.failures) >= MOST_FAILURES:
            raise StageError(
                message(f"qualification ({what})", "engines must answer", got=f"{len(self.failures)} failed trials",
                        expected="answers", do=f"The last failure was: {error}")
            ) from error  # fmt: skip
        return Trial(None, {"error": " ".join(str(error).split())[:300]})

    def _audited(self, spec: Spec, model: Model) -> tuple[Trial, Failing | None]:
        """What the workloads show, until one of them does not agree."""
        assert self.scorer is not None, "resolved with the configurations"
        folder, seen = self.folder / f"trial-{self._trials}", _Seen()
        with tempfile.TemporaryDirectory(prefix="lockstep-qualify-") as weights, ExitStack() as stack:
            publisher = Publisher(model, Path(weights))
            engine = opened(spec, publisher, stack, folder / "engine", self.announce)
            scorer = opened(self.scorer, publisher, stack, folder / "scorer", self.announce)
            for number, workload in enumerate(self.workloads):
                audit = Audit(engine, scorer, publisher, workload)
                for finding in audit.run():
                    if not seen.agrees(finding, exact=self.exact):
                        figures = {"temperature": workload.params.temperature, "step": finding.step}
                        worst = _worst(audit.observations[-1])
                        failing = Failing(worst, number, finding.step) if worst else None
                        return Trial(False, {**seen.figures, **figures, "cause": _cause(finding)}), failing
        return Trial(True if seen.tokens else None, seen.figures), None


@dataclass(slots=True)
class _Seen:
    """Sums over the findings of a trial."""

    tokens: int = 0
    differing: int = 0
    total: float = 0.0
    largest: float = 0.0

    def agrees(self, finding: Finding, *, exact: bool) -> bool:
        """Whether a step agrees; `exact`: in every bit."""
        tokens = int(finding.figures.get("tokens", 0))
        if tokens:
            self.tokens += tokens
            self.differing += int(finding.figures["differing"])
            self.total += tokens * finding.figures["mean"]
            self.largest = max(self.largest, finding.figures["max"])
        return finding.status == "parity" and not (exact and tokens and finding.figures["differing"])

    @property
    def figures(self) -> dict[str, Figure]:
        if not self.tokens:
            return {"tokens": 0}
        mean = self.total / self.tokens
        return {"mean": mean, "max": self.largest, "tokens": self.tokens, "differing": self.differing}


def _cause(finding: Finding) -> str:
    return finding.code or ("no cause explains it" if finding.status == "undetermined" else "bits differ")


def _worst(observation: Observation) -> Completion | None:
    """The completion that differs most; None if no two series can be subtracted."""
    completions = [_completion(sample) for sample in observation.comparable if len(sample.token_ids)]
    return max(completions, key=lambda one: one.mean, default=None)


def _completion(sample: Sample) -> Completion:
    assert sample.sampler is not None and sample.trainer is not None, "comparable"
    prompt, tokens = (np.ascontiguousarray(array, np.int32) for array in (sample.prompt_ids, sample.token_ids))
    old, new = (np.ascontiguousarray(array, np.float32) for array in (sample.trainer, sample.sampler))
    return Completion(sample.id, prompt, tokens, old, new)


def _check_draws(spec: Spec, can: frozenset[str]) -> None:
    if "sample" not in can:
        raise InputError(
            message(f"engine ({spec})", "OLD and NEW draw tokens", got="one that only scores",
                    expected="one that draws", do="Give it as --scorer")
        )  # fmt: skip


def _trainer(old: Spec, said: Statement, model: Model) -> Spec:
    """Lockstep's trainer, in the dtype of OLD if it has that."""
    named = old.what if old.kind != "openai" else model.path.name
    return Spec("trainer", named, {"dtype": "float32"} if said.settings.get("dtype") == "float32" else {})
