"""`report.html`: one offline file that says what a run proved, with figures and sample rollouts.

In: a run directory, whole, partial or refused. Out: HTML without scripts, and without fonts or images from elsewhere;
the page's own policy forbids them, so that hostile text in a prompt stays text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lockstep.config import RunConfig
from lockstep.dashboard.charts import charts
from lockstep.dashboard.corrections import removals
from lockstep.dashboard.facts import Accuracy, Facts
from lockstep.dashboard.samples import Decode, Group, Sample, differing, samples
from lockstep.dashboard.units import ABSENT, count, duration, exact, fixed
from lockstep.errors import InputError, LockstepError
from lockstep.trace import Refusal, RunDirectory, rollouts
from lockstep.trace.durable import replace_file

MOST_ROWS = 200
COLUMNS = {
    "step": ("step", 0),
    "reward": ("reward", 3),
    "parity": ("parity/max", -1),
    "tokens": ("parity/num_tokens", 0),
    "kl": ("kl_new_old", 4),
    "clip": ("clamp_log_ratio_new_old_indicator", 4),
    "entropy": ("entropy", 3),
    "ess": ("ess", 3),
    "loss": ("loss", 4),
    "grad norm": ("grad_norm", 3),
    "seconds": ("time/step", 2),
}


def write(run: RunDirectory, decode: Decode | None = None) -> Path:
    """Write the run's `report.html`, atomically, and return its path.

    `decode` turns token ids into text (``model.tokenizer.decode``) and lets completions be shaded token by token.
    Raises `InputError` if `run` holds no configuration or manifest, `StorageError` if it cannot be written.
    """
    replace_file(run.report_file, render(run, decode).encode("utf-8", "replace"))
    return run.report_file


class ReportObserver:
    """Writes the report when the run ends, however it ends."""

    def __init__(self, run: RunDirectory, decode: Decode | None = None) -> None:
        self._run, self._decode = run, decode

    def on_start(self, config: RunConfig, manifest: Mapping[str, Any]) -> None: ...

    def on_phase(self, name: str, done: int, total: int) -> None: ...

    def on_step(self, step: int, metrics: Mapping[str, float | None]) -> None: ...

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Raises as `write` does after a finished run; else what ended the run is the error to report, not this."""
        with suppress(*(() if summary["outcome"] == "finished" else (LockstepError,))):
            write(self._run, self._decode)


def render(run: RunDirectory, decode: Decode | None = None) -> str:
    """The page as text."""
    facts = Facts.of(run)
    loader = PackageLoader("lockstep.dashboard", ".")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, _, _ = loader.get_source(environment, "report.css")
    sections = {name: [(chart, Markup(chart.svg)) for chart in found] for name, found in charts(facts).items()}
    refused, shown, unread = _samples(run, facts, decode)
    return environment.get_template("report.html.jinja").render(
        style=Markup(style),
        facts=facts,
        tiles=_tiles(facts),
        accuracy=_accuracy(facts.accuracies),
        sections=sections,
        removals=removals(facts.lines),
        samples=shown,
        unread=unread,
        refused=refused,
        evidence=_evidence(facts.refusal) if facts.refusal else {},
        refused_batch=_relative(run, facts.refusal.batch) if facts.refusal and facts.refusal.batch else None,
        columns=list(COLUMNS),
        rows=_rows(facts.lines),
        table=f"{count(min(len(facts.lines), MOST_ROWS))} of the {count(len(facts.lines))}",
        manifest=_flat(facts.manifest),
        resumed=facts.manifest.get("resumed") or [],
    )


def _tiles(facts: Facts) -> list[tuple[str, str, str]]:
    """Key numbers: name, value, and a remark."""
    if not facts.lines:
        return []
    first = facts.lines[0].get("reward")
    tokens = facts.parity.tokens
    tiles = [
        ("Reward", fixed(facts.latest("reward")), f"{fixed(first)} in the first step"),
        ("Tokens compared", count(tokens), f"{count(tokens / len(facts.lines))} a step"),
        ("Time in steps", duration(facts.seconds), f"{duration(facts.seconds / len(facts.lines))} a step"),
    ]
    cost = [line["time/parity"] for line in facts.lines if line.get("time/parity") is not None]
    if facts.seconds and len(cost) == len(facts.lines):
        tiles.append(("Cost of the gate", f"{100 * sum(cost) / facts.seconds:.2f} %", "of the time in steps"))
    speed = facts.latest("throughput/tokens_per_s")
    if speed is not None:
        tiles.append(("Throughput", f"{count(speed)} tok/s", "sampled, checked and trained on, in the last step"))
    memory = [line["memory/peak_gb"] for line in facts.lines if line.get("memory/peak_gb") is not None]
    if memory:
        tiles.append(("Peak memory", f"{max(memory):.1f} GB", "of the process"))
    return tiles


def _accuracy(known: Sequence[Accuracy]) -> dict[str, str] | None:
    """Held-out accuracy, first and last, each with its interval."""
    if not known:
        return None
    first, last = known[0], known[-1]
    when = f"before {_interval(first)}" if len(known) > 1 else _when(first)
    remark = f"greedy, {count(last.tasks)} problems never trained on" if last.tasks else "greedy"
    return {
        "before": f"{first.value:.2f}" if len(known) > 1 else "",
        "after": f"{last.value:.2f}",
        "remark": f"{remark}; 95 % interval {_interval(last)}, {when}" if len(known) > 1 else f"{when}, {remark}",
    }


def _when(accuracy: Accuracy) -> str:
    return f"after step {accuracy.step}" if accuracy.step else "before the first step"


def _interval(accuracy: Accuracy) -> str:
    found = accuracy.interval
    return f"{found[0]:.2f} to {found[1]:.2f}" if found else ABSENT


def _samples(run: RunDirectory, facts: Facts, decode: Decode | None) -> tuple[list[Group], list[Sample], list[str]]:
    """What was refused, sample rollouts, and what could not be read: a damaged file must not cost the report."""
    refused: list[Group] = []
    shown: list[Sample] = []
    unread: list[str] = []
    try:
        if facts.refusal is not None and facts.refusal.batch is not None:
            refused = differing(rollouts.read(facts.refusal.batch), decode)
    except InputError as cause:
        unread.append(str(cause))
    try:
        shown = samples(run, decode)
    except InputError as cause:
        unread.append(str(cause))
    return refused, shown, unread


def _evidence(refusal: Refusal) -> dict[str, str]:
    """What the gate saw, the first difference on top; what the reason already says is left out."""
    tree = dict(refusal.evidence)
    first = tree.pop("first", None)
    if str(tree.get("finding")) in refusal.reason:
        tree.pop("finding", None)
        tree.pop("hints", None)
    return _flat({**({"first": first} if first else {}), **tree})


def _rows(lines: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The table of steps: all, or the first and last hundred."""
    half = MOST_ROWS // 2
    kept = lines if len(lines) <= MOST_ROWS else [*lines[:half], *lines[-half:]]
    return [[_cell(line.get(key), digits) for key, digits in COLUMNS.values()] for line in kept]


def _cell(value: float | None, digits: int) -> str:
    return exact(value) if digits < 0 else count(value) if digits == 0 else fixed(value, digits)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as dotted names; lists of plain values in one line."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{name}.")
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            flat |= _flat({str(place): item for place, item in enumerate(value)}, f"{name}.")
        elif isinstance(value, list):
            flat[name] = ", ".join(map(str, value)) or ABSENT
        else:
            flat[name] = ABSENT if value is None else str(value)
    return flat


def _relative(run: RunDirectory, path: Path) -> str:
    return str(path.relative_to(run.path))
