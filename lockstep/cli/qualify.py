"""`lockstep qualify OLD NEW`: does the new engine agree, and if not, which settings have to be put back?"""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from lockstep.errors import InputError, Interrupted, LockstepError, message

if TYPE_CHECKING:
    from lockstep.adapters.engines.qualify import Failing, Qualifier
    from lockstep.adapters.engines.spec import Spec
    from lockstep.adapters.engines.workload import Workload
    from lockstep.models import Model
    from lockstep.parity.qualify.log import Log
    from lockstep.parity.qualify.qualification import Qualification
    from lockstep.parity.qualify.restoration import Restoration
    from lockstep.parity.qualify.trial import Record

TRIALS, PACK = "trials.jsonl", "repro.zip"


@Parameter(name="*")
@dataclass(frozen=True)
class Workloads:
    """What each trial runs.

    Parameters
    ----------
    scorer
        The word for the side that scores all tokens; Lockstep's trainer, in the dtype of OLD, if it is not given.
    model
        Name or directory of the model, where neither OLD nor NEW names it.
    temperature
        Of the logits, above 0; may be given more than once. 0.7 and 1.0 if it is not given.
    steps
        At each temperature; before every one but the first there are new weights.
    prompts
        Of each step.
    n
        Completions of each prompt.
    max_tokens
        Of each completion.
    seed
        Of prompts and draws.
    """

    scorer: str = ""
    model: str = ""
    temperature: Annotated[tuple[float, ...], Parameter(negative=())] = ()
    steps: int = 3
    prompts: int = 4
    n: int = 4
    max_tokens: int = 24
    seed: int = 0

    @property
    def temperatures(self) -> tuple[float, ...]:
        return self.temperature or (0.7, 1.0)

    def workloads(self) -> list[Workload]:
        """One a temperature. Raises `InputError` for a value out of range."""
        from lockstep.adapters.engines.workload import Workload
        from lockstep.core import SamplingParams

        return [
            Workload(
                SamplingParams(temperature=one, n=self.n, max_tokens=self.max_tokens, ignore_eos=True),
                self.prompts, self.steps, seed=self.seed,
            )
            for one in self.temperatures
        ]  # fmt: skip

    def rerun(self, old: Spec, new: Spec, scorer: Spec, failing: Failing) -> str:
        """The command that runs into the failing case again, and no further than that."""
        steps = failing.step if failing.workload == 0 else self.steps
        words = ["lockstep", "qualify", str(old), str(new), "--scorer", str(scorer)]
        for one in self.temperatures[: failing.workload + 1]:
            words += ["--temperature", f"{one:g}"]
        numbers = {"steps": steps, "prompts": self.prompts, "n": self.n, "max-tokens": self.max_tokens}
        words += [part for name, value in numbers.items() for part in (f"--{name}", str(value))]
        words += ["--seed", str(self.seed), *(["--model", self.model] if self.model else [])]
        return shlex.join(words)

    def plain(self) -> dict[str, Any]:
        """All that decides an outcome besides the two sides."""
        numbers = {name: getattr(self, name) for name in ("steps", "prompts", "n", "max_tokens", "seed")}
        return {"temperature": list(self.temperatures), **numbers}


_WORKLOADS = Workloads()


def qualify(
    old: str,
    new: str,
    *,
    run: Annotated[Workloads, Parameter(name="*")] = _WORKLOADS,
    output: Path | None = None,
    resume: bool = False,
    json: bool = False,
) -> int:
    """Run one workload on two engines, and find the fewest settings that make the new one agree.

    An engine is a word: `vllm:smollm2,logprobs_mode=processed_logprobs`, `engine:smollm2,dtype=float32`. Exit code 0:
    NEW agrees; 1: it differs, or nobody can tell; 2: OLD does not agree with the scorer, or it could not be begun.

    Parameters
    ----------
    old
        The engine as it was.
    new
        The engine as it is to be.
    run
        What each trial runs.
    output
        A directory for the reports, the log of trials and the repro pack; below runs/ if it is not given.
    resume
        Go on with the trials that are in that directory.
    json
        Print the qualification as one JSON document, and nothing else.
    """
    from lockstep.adapters.engines.qualify import Qualifier
    from lockstep.adapters.engines.spec import parse

    specs = parse(old), parse(new)
    scorer = parse(run.scorer) if run.scorer else None
    workloads = run.workloads()
    folder = output or Path("runs") / _slug(f"qualify-{specs[0]}-{specs[1]}")
    _check_fresh(folder, resume=resume)
    qualifier = Qualifier(specs, scorer, _models(specs, run.model), workloads, folder / "logs", _say)
    qualification = _Session(qualifier, run, folder).run()
    if json:
        from lockstep.parity.qualify import report

        sys.stdout.write(report.json(qualification).decode())
    else:
        print(f"reports: {folder}")
        print(qualification.verdict)
    return qualification.exit_code


class _Session:
    """A qualification with its folder: whatever happens, what is known by then is on disk."""

    def __init__(self, qualifier: Qualifier, run: Workloads, folder: Path) -> None:
        self._qualifier, self._run, self._folder = qualifier, run, folder
        self._started, self._records = time.perf_counter(), []

    def run(self) -> Qualification:
        """The finished one. Raises `LockstepError` if it ends early, with the partial report written."""
        log = self._log()
        try:
            found = self._qualifier.run(lambda record: self._seen(log, record), self._known(log))
        except (LockstepError, KeyboardInterrupt) as error:
            partial = self._qualifier.partial(self._records)
            self._write(partial, {"ended early": " ".join(f"{type(error).__name__}: {error}".split())[:500]})
            if isinstance(error, KeyboardInterrupt):
                kept = f"{len(self._records)} trials are kept in {self._folder}; --resume goes on with them."
                raise Interrupted(f"qualification: interrupted. {kept}") from error
            _say(f"what is known by now is in {self._folder}")
            raise
        return self._write(found, {})

    def _log(self) -> Log:
        from lockstep.parity.qualify.difference import fingerprint
        from lockstep.parity.qualify.log import Log

        sides = self._qualifier.configurations
        assert sides.differences is not None, "refused before a log is begun"
        common = {"scorer": str(self._qualifier.scorer), "workload": self._run.plain()}
        specs = [{"spec": str(spec), **common} for spec in self._qualifier.specs]
        return Log.open(self._folder / TRIALS, fingerprint({**sides.old, **specs[0]}, {**sides.new, **specs[1]}))

    def _known(self, log: Log) -> list[Record]:
        """Earlier trials, but for NEW as it is where the pack of its failing case is missing."""
        lost = not (self._folder / PACK).exists()
        return [r for r in log.known if not (lost and r.kept == frozenset() and r.trial.parity is False)]

    def _seen(self, log: Log, record: Record) -> None:
        self._records.append(record)
        log.add(record)

    def _write(self, found: Restoration, more: Mapping[str, str]) -> Qualification:
        from lockstep.parity.qualify import report
        from lockstep.trace.manifest import machine, versions

        told = {**self._run.plain(), **machine(), **versions()}
        facts = {name: " ".join(map(str, v)) if isinstance(v, list) else str(v) for name, v in told.items()}
        figures = {"seconds": round(time.perf_counter() - self._started, 1)}
        qualification = self._qualifier.qualification(found, {**more, **facts}, figures)
        report.write(qualification, self._folder)
        if self._qualifier.failing is not None:
            self._pack(qualification, self._qualifier.failing, facts)
        return qualification

    def _pack(self, qualification: Qualification, failing: Failing, facts: Mapping[str, str]) -> None:
        from lockstep.parity.qualify import pack
        from lockstep.parity.qualify.case import Case

        sides, scorer = self._qualifier.configurations, self._qualifier.scorer
        assert scorer is not None, "resolved with the configurations"
        whose = f"old_logprobs are those of {scorer}, with which OLD agrees"
        rerun = self._run.rerun(*self._qualifier.specs, scorer, failing)
        case = Case(
            sides.old, sides.new, (failing.completion,), qualification.verdict, rerun, {"logprobs": whose, **facts}
        )
        pack.write(self._folder / PACK, case)


def _models(specs: tuple[Spec, Spec], model: str) -> tuple[Model, Model]:
    """The models that OLD and NEW name. Raises `InputError` where none is named."""
    from lockstep import models

    named = [spec.what for spec in specs if spec.kind != "openai"]
    if not model and not named:
        do = "Give --model"
        raise InputError(message("qualification (model)", "it must be known", got="none", expected="a name", do=do))
    names = [spec.what if spec.kind != "openai" else model or named[0] for spec in specs]
    first = models.load(names[0])
    return first, first if names[1] == names[0] else models.load(names[1])


def _check_fresh(folder: Path, *, resume: bool) -> None:
    if (folder / TRIALS).exists() and not resume:
        do = "Say --resume to go on with them, or give another --output"
        raise InputError(
            message(f"--output ({folder})", "it is not written over", got="trials of an earlier run",
                    expected="a new directory", do=do)
        )  # fmt: skip


def _slug(text: str) -> str:
    """A name for a directory."""
    return re.sub(r"[^A-Za-z0-9._=-]+", "-", text).strip("-")[:150]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
