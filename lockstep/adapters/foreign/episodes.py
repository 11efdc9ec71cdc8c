"""prime-rl's saved episodes: ``rollouts/step_N/train/{effective,all}/traces.jsonl``, a line an episode of verifiers.

In: lines with `traces`, each a tree of messages (`nodes` with `parent`, `token_ids`, `mask`, `sampled`, `logprobs`) and
the `calls` that sampled some of them. Out: observations, one a file: each sampled message is a sample, and its prompt
is the way to it from the root. No trainer's logprobs are written. A node's `logprobs` are those of the tokens that its
mask marks. Traces of agents that are not trained are left out, and ``all`` where ``effective`` is there. Tokens have a
version if the run's `policy` span begins and ends with the same one.

Source: PrimeIntellect-ai/prime-rl, src/prime_rl/monitors/file.py at 559b447 (0.8.0, 2026-08-22), which writes
`Episode.to_record`; PrimeIntellect-ai/verifiers, verifiers/v1/{episode,trace,graph,types}.py at a60a606 (2026-08-21).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lockstep.adapters.foreign.asked import params
from lockstep.adapters.foreign.files import in_order, step_of
from lockstep.adapters.foreign.gaps import Gaps
from lockstep.adapters.foreign.lines import values
from lockstep.adapters.foreign.row import Row, has
from lockstep.adapters.foreign.run import ForeignRun, Format
from lockstep.adapters.foreign.turns import NO_IDS
from lockstep.parity.observation import Observation, Sample

NOTES = {"mismatch": "episodes are written before the trainer scores them; enable_token_export writes both series"}


def _opened(path: Path, files: Sequence[Path]) -> ForeignRun:
    ordered = [file for file in in_order(files) if not _repeated(file, set(files))]
    return ForeignRun(FORMAT.name, path, lambda gaps: _observations(ordered, gaps), notes=NOTES)


def _repeated(file: Path, files: set[Path]) -> bool:
    """Whether it holds what another file holds a selection of: all episodes, or those of an evaluation."""
    kind, subset = file.parent.parent, file.parent.name
    if kind.name == "eval" and any(other.parent.parent == kind.parent / "train" for other in files):
        return True
    return subset == "all" and kind / "effective" / file.name in files


def _observations(files: Sequence[Path], gaps: Gaps) -> Iterator[Observation]:
    for number, file in enumerate(files, 1):
        samples: list[Sample] = []
        dispatched = None
        for found in values(file, gaps):
            episode = Row.of(found.place, found.value)
            work = _work(episode)
            dispatched = work.integer("step") if work is not None and dispatched is None else dispatched
            samples += _episode(episode, work)
        step = step_of(file)
        step = dispatched if step is None else step
        if samples:
            yield Observation(number if step is None else step, samples)


def _work(episode: Row) -> Row | None:
    run = episode.row("run")
    return None if run is None else run.row("work")


def _episode(episode: Row, work: Row | None) -> Iterator[Sample]:
    policy = None if work is None else work.row("policy")
    span = None if policy is None else (policy.integer("start"), policy.integer("end"))
    version = span[0] if span and span[0] == span[1] else None
    group = episode.row("group")
    said = {"group": (group.text("id") if group is not None else None) or ""}
    for number, trace in enumerate(episode.rows("traces") or []):
        agent = trace.row("agent")
        if agent is None or agent.flag("trainable") is not False:
            name = trace.text("id") or f"{episode.text('id') or episode.place}/{number}"
            for sample in _trace(trace, name, said):
                yield _versioned(sample, version)


def _versioned(sample: Sample, version: int | None) -> Sample:
    if version is None or not -(2**31) <= version < 2**31:
        return sample
    return replace(sample, versions=np.full(len(sample.token_ids), version, np.int32))


def _trace(trace: Row, name: str, said: dict[str, Any]) -> Iterator[Sample]:
    calls = {call.integer("node"): call for call in trace.rows("calls") or []}
    ways: list[np.ndarray] = []  # ids from the root to the end of each node
    for at, node in enumerate(trace.rows("nodes") or []):
        parent = node.integer("parent")
        if parent is not None and not 0 <= parent < at:
            raise node.wrong("parent", parent, "null, or the number of an earlier node")
        before = NO_IDS if parent is None else ways[parent]
        ids = node.ids("token_ids")
        ids = NO_IDS if ids is None else ids
        ways.append(np.concatenate((before, ids)))
        if node.flag("sampled"):
            yield _node(node, f"{name}/{at}", (before, ids), {**said, **_call(calls.get(at)), "text": _text(node)})


def _node(node: Row, name: str, ids: tuple[np.ndarray, np.ndarray], said: dict[str, Any]) -> Sample:
    """The tokens that the mask marks; a chat template's own come first, so they are part of the prompt."""
    before, own = ids
    mask = node.flags("mask")
    mask = np.zeros(len(own), bool) if mask is None else mask
    node.same_length({"token_ids": own, "mask": mask})
    if not mask.any():
        return Sample(name, NO_IDS, NO_IDS, **said)
    first, count = int(mask.argmax()), int(mask.sum())
    if not mask[first : first + count].all():
        raise node.wrong("mask", "sampled tokens with others between them", "one run of sampled tokens")
    prompt = np.concatenate((before, own[:first]))
    series = {"sampler": node.floats("logprobs"), "reference": node.floats("reference_logprobs")}
    series = {field: None if values is None or not len(values) else values for field, values in series.items()}
    return Sample(name, prompt, own[first : first + count], **series, **said)


def _call(call: Row | None) -> dict[str, Any]:
    """What the call that sampled a node says of it."""
    if call is None:
        return {}
    sampling, usage = call.row("sampling"), call.row("usage")
    return {
        "finish_reason": call.text("finish_reason") or "",
        "params": None if sampling is None else params(sampling),
        "num_cached": None if usage is None else usage.integer("cached_input_tokens"),
    }


def _text(node: Row) -> str | None:
    said = node.row("message")
    return said.text("content") if said is not None and isinstance(said.tree.get("content"), str) else None


FORMAT = Format(
    "prime-rl episodes",
    "prime-rl",
    "lines with env, task, traces (rollouts/step_N/train/*/traces.jsonl)",
    _opened,
    of_json=lambda value: has(value, "task", "traces") and isinstance(value["traces"], list),  # type: ignore[index]
)
