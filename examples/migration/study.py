"""`python -m examples.migration.study`: can a correction in the objective stand in for a correct engine?

In: seeds. Out: results/study.json, results/study.svg and the table, for four arms that differ in two factors.

                     no correction      truncated importance sampling (one weight a sequence)
    naive engine     broken             broken+correction
    engine mended    mended             mended+correction

Decided before the first run: the outcome is the accuracy on held-out words after the last step, drawn as in training by
an engine without faults from the weights that were learnt; beside it the area under its curve. All arms of a seed share
words, warm start, random numbers and number of rollouts. Every run is kept, whatever it shows.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from examples.migration import figure
from examples.migration.settings import NAIVE, REFERENCE, Settings
from examples.migration.statistics import area, holm, paired
from examples.migration.training import Training, train
from lockstep.trace.durable import append_line, replace_file

RESULTS = Path(__file__).parent / "results"
EVERY = 25


@dataclass(frozen=True, slots=True)
class Arm:
    """One cell of the study."""

    name: str
    settings: Settings
    correction: str


ARMS = (
    Arm("broken", NAIVE, "none"),
    Arm("broken+correction", NAIVE, "sequence_tis"),
    Arm("mended", REFERENCE, "none"),
    Arm("mended+correction", REFERENCE, "sequence_tis"),
)

CONTRASTS = (
    ("mended", "broken", "a correct engine, nothing else"),
    ("broken+correction", "broken", "a correction over a broken engine"),
    ("mended", "broken+correction", "the thesis: mending against correcting"),
    ("mended+correction", "mended", "a correction once the engine is correct"),
)
"""(arm, arm that is taken from it, what the difference is of)."""

OUTCOMES = {"accuracy": "held-out accuracy after the last step", "area": "mean held-out accuracy over the run"}


def run_one(job: tuple[str, int, int]) -> dict[str, Any]:
    """Train one arm on one seed: (name of the arm, seed, steps)."""
    name, seed, steps = job
    arm = next(arm for arm in ARMS if arm.name == name)
    training = Training(seed, steps, evaluate_every=EVERY, correction=arm.correction)  # type: ignore[arg-type]
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        found = train(training, arm.settings, Path(folder))
    curve = [(line["step"], line["eval/sampled_accuracy"], line["eval/accuracy"]) for line in found.evaluations]
    return {
        "arm": name,
        "seed": seed,
        "steps": steps,
        "accuracy": curve[-1][1],
        "greedy": curve[-1][2],
        "area": area([step for step, *_ in curve], [value for _, value, _ in curve]),
        "curve": curve,
        "tokens": found.tokens,
        "mismatch_mean": found.mean,
        "mismatch_max": found.mismatch,
        "clipped": _mean(line["clamp_log_ratio_new_old_indicator"] for line in found.lines),
        "cpu_seconds": time.process_time() - started,
    }


def run_all(seeds: Sequence[int], steps: int, log: Path, workers: int) -> list[dict[str, Any]]:
    """Every arm on every seed; what `log` has already is not run again, and each run is in it the moment it ends."""
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    known = {(run["arm"], run["seed"], run["steps"]) for run in done}
    jobs = [(arm.name, seed, steps) for seed in seeds for arm in ARMS if (arm.name, seed, steps) not in known]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for run in pool.map(run_one, jobs):
            append_line(log, json.dumps(run).encode() + b"\n")
            done.append(run)
            said = f"accuracy {run['accuracy']:.3f}, mean |mismatch| {run['mismatch_mean']:.3g}"
            print(f"seed {run['seed']:2d}  {run['arm']:<18} {said}", flush=True)
    return [run for run in done if run["seed"] in seeds and run["steps"] == steps]


def analyse(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means of the arms, and the contrasts of `CONTRASTS` for each outcome, over the seeds that all arms have."""
    by_arm = {arm.name: {run["seed"]: run for run in runs if run["arm"] == arm.name} for arm in ARMS}
    seeds = sorted(set.intersection(*(set(found) for found in by_arm.values())))
    arms = {
        name: {
            key: _mean(found[seed][key] for seed in seeds) for key in (*OUTCOMES, "greedy", "mismatch_mean", "clipped")
        }
        for name, found in by_arm.items()
    }
    contrasts = []
    for outcome in OUTCOMES:
        pairs = [
            [by_arm[one][seed][outcome] - by_arm[other][seed][outcome] for seed in seeds] for one, other, _ in CONTRASTS
        ]
        found = [paired(differences) for differences in pairs]
        adjusted = holm([result.p for result in found])
        contrasts += [
            {"outcome": outcome, "of": f"{one} - {other}", "what": what, **asdict(result), "p_holm": p, "each": each}
            for (one, other, what), result, p, each in zip(CONTRASTS, found, adjusted, pairs, strict=True)
        ]
    return {"seeds": seeds, "arms": arms, "contrasts": contrasts}


def table(found: dict[str, Any]) -> str:
    """Both tables as Markdown."""
    lines = ["| arm | accuracy | area | mean of abs(mismatch), nats | clipped |", f"|{' --- |' * 5}"]
    for name, arm in found["arms"].items():
        numbers = f"{arm['accuracy']:.3f} | {arm['area']:.3f} | {arm['mismatch_mean']:.3g} | {arm['clipped']:.3f}"
        lines.append(f"| {name} | {numbers} |")
    lines += [
        "",
        "| difference of | outcome | mean | interval | p | p (Holm) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in found["contrasts"]:
        spread = f"{one['low']:+.3f} to {one['high']:+.3f}"
        lines.append(
            f"| {one['of']} | {one['outcome']} | {one['mean']:+.3f} | {spread} | {one['p']:.4f} | {one['p_holm']:.4f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Run, analyse, write, print."""
    parser = argparse.ArgumentParser(prog="python -m examples.migration.study", description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=10, help="how many, from 0 (at most 16)")
    parser.add_argument("--steps", type=int, default=Training().steps)
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    runs = run_all(range(options.seeds), options.steps, options.out / "study_runs.jsonl", options.workers)
    found = analyse(runs)
    whole = {"steps": options.steps, "outcomes": OUTCOMES, **found}
    replace_file(options.out / "study.json", (json.dumps(whole, indent=1) + "\n").encode())
    figure.study(options.out / "study.svg", found, runs)
    print(table(found))
    return 0


def _mean(values: Iterable[float]) -> float:
    several = list(values)
    return sum(several) / len(several)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
