"""`python -m examples.migration`: three trainings side by side, then the names of what broke one of them.

In: options. Out: results/migration.json, results/migration.svg, and in the last line what was found. Exit codes: 0 all
four settings were found, 1 not.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from examples.migration import causes, figure
from examples.migration.settings import CAUSES, NAIVE, REFERENCE, Settings, changed
from examples.migration.training import Outcome, Training, train
from lockstep.parity.qualify.qualification import Qualification
from lockstep.parity.qualify.trial import Record
from lockstep.trace.durable import replace_file

RESULTS = Path(__file__).parent / "results"

ARMS: Mapping[str, Settings | None] = {"reference": None, "naive": NAIVE, "mended": REFERENCE}
"""The reference is the library's own engine; the other two are the service, which is configured."""


def main(arguments: Sequence[str]) -> int:
    """Run everything, write it, print it."""
    parser = argparse.ArgumentParser(prog="python -m examples.migration", description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=Training().steps, help="of each arm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = arms(Training(options.seed, options.steps), Path(folder), options.workers)
        trials = causes.Trials(Path(folder) / "trials", replace(causes.SHORT, seed=options.seed))
        print("\nWhich settings? Trials of a short training, with some put back:")
        qualification = causes.qualify(trials, _say)
        refusal = causes.refused(Path(folder) / "gated", trials.training)
    names = causes.named(trials)
    told = record(found, qualification, names, refusal) | {"seconds": time.perf_counter() - started}
    replace_file(options.out / "migration.json", (json.dumps(told, indent=1) + "\n").encode())
    figure.arms(options.out / "migration.svg", {name: outcome.lines for name, outcome in found.items()})
    print(f"\nWith the gate closed the naive engine trains on nothing:\n  {refusal}")
    print("\nThe auditor, where one setting alone is wrong: " + ", ".join(f"{n}: {c}" for n, c in names.items()))
    print(f"\n{last_line(found, qualification, names, told['seconds'])}")
    return 0 if complete(qualification) else 1


def arms(training: Training, folder: Path, workers: int) -> dict[str, Outcome]:
    """The three trainings; equal but for the engine. Only the correct ones keep their gate."""
    jobs = [(replace(training, gated=name != "naive"), settings, folder / name) for name, settings in ARMS.items()]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        found = dict(zip(ARMS, pool.map(train, *zip(*jobs, strict=True)), strict=True))
    for name, outcome in found.items():
        last = outcome.evaluations[-1]["eval/sampled_accuracy"]
        told = f"mean |mismatch| {outcome.mean:.3g} (max {outcome.mismatch:.3g}) over {outcome.tokens:.0f} tokens"
        print(f"{name:<10} {told}; held-out accuracy {last:.3f}; weights {outcome.digest[:8]}", flush=True)
    return found


def record(
    found: Mapping[str, Outcome], qualification: Qualification, names: Mapping[str, str | None], refusal: str
) -> dict[str, Any]:
    """All numbers, as JSON holds them."""
    keys = ("step", *figure.PANELS, "mean_abs_log_ratio_new_old", "ess", "update/kl", "parity/max")
    return {
        "settings": {name: asdict(settings or REFERENCE) for name, settings in ARMS.items()},
        "arms": {
            name: {
                "digest": outcome.digest,
                "gated": outcome.gated,
                "mismatch_mean": outcome.mean,
                "mismatch_max": outcome.mismatch,
                "tokens": outcome.tokens,
                "seconds": outcome.seconds,
                "evaluations": outcome.evaluations,
                "steps": [{key: line[key] for key in keys} for line in outcome.lines],
            }
            for name, outcome in found.items()
        },
        "named": dict(names),
        "expected": CAUSES,
        "refusal": refusal,
        "qualification": qualification.plain(),
    }


def complete(qualification: Qualification) -> bool:
    """Whether the restoring set is all four settings, proven to be needed."""
    found = qualification.restoration
    return found.minimal and found.kept == {difference.name for difference in changed()}


def last_line(
    found: Mapping[str, Outcome], qualification: Qualification, names: Mapping[str, str | None], seconds: float
) -> str:
    """One sentence with what was found."""
    same = found["mended"].digest == found["reference"].digest
    right = sum(names[name] == code for name, code in CAUSES.items())
    ends = "the mended arm ends with the reference's weights, bit for bit" if same else "the mended arm ends ELSEWHERE"
    return f"{qualification.verdict}; {right} of {len(CAUSES)} named by the auditor; {ends}; {seconds:.0f} s"


def _say(record: Record) -> None:
    kept = "reference, itself" if record.kept is None else ", ".join(sorted(record.kept)) or "none"
    figures = record.trial.figures
    print(f"  {record.trial.outcome:<8} {figures['mean']:<9.3g} {figures['audit']:<13} {kept}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
