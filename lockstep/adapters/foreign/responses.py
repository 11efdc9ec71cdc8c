"""Responses of vLLM, or of any server of the OpenAI protocol, saved as JSON or JSONL.

In: bodies of `/v1/completions`, `/v1/chat/completions` and vLLM's `/inference/v1/generate`; alone, as ``{"request":
..., "response": ...}``, or as the Batch API and `vllm run-batch` write them. Out: observations of up to `BATCH`
responses, numbered from 1. A server knows no trainer. What the parameters of sampling are is said by a request that
names all of them, else by nobody. choice.py reads the tokens.

Source: vllm-project/vllm, vllm/entrypoints/openai/{completion,chat_completion}/protocol.py at 002032e and
vllm/entrypoints/serve/disagg/protocol.py at 0640893 (bodies); `BatchRequestOutput` in openai/protocol.py of v0.10;
OpenAI's reference of both endpoints and of the Batch API.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from lockstep.adapters.foreign.asked import params, settings
from lockstep.adapters.foreign.choice import Response, sample
from lockstep.adapters.foreign.files import in_order
from lockstep.adapters.foreign.gaps import Gaps
from lockstep.adapters.foreign.lines import Found, first_values, values
from lockstep.adapters.foreign.row import Row, has
from lockstep.adapters.foreign.run import ForeignRun, Format
from lockstep.parity.observation import Observation, Sample, Statement

BATCH = 64
"""Responses in an observation: a server knows no steps."""

CHUNK = "chat.completion.chunk"
NOTES = {"mismatch": "a server's responses are one side only"}


def _opened(path: Path, files: Sequence[Path]) -> ForeignRun:
    ordered = in_order(files)
    return ForeignRun(FORMAT.name, path, lambda gaps: _observations(ordered, gaps), _version(ordered[0]), NOTES)


def _version(file: Path) -> str | None:
    """The server's fingerprint, which names version and settings in newer releases of vLLM."""
    for value in first_values(file):
        fingerprint = (_body(value) or {}).get("system_fingerprint")
        if isinstance(fingerprint, str):
            return fingerprint
    return None


def _observations(files: Sequence[Path], gaps: Gaps) -> Iterator[Observation]:
    read = (pair for file in files for found in values(file, gaps) for pair in _samples(found, gaps))
    step = 0
    while members := list(islice(read, BATCH)):
        step += 1
        said = [settings for _, settings in members]
        common = {k: v for k, v in said[0].items() if all(k in other and other[k] == v for other in said)}
        yield Observation(step, [s for samples, _ in members for s in samples], Statement("engine", common))


def _samples(found: Found, gaps: Gaps) -> Iterator[tuple[list[Sample], dict[str, float]]]:
    """Samples of one response and the settings that its request names; of each, if a line is a list of them."""
    for value in found.value if isinstance(found.value, list) else [found.value]:
        row, tree = Row.of(found.place, value), _body(value)
        if tree is None:
            gaps.add(f"{found.place}: the request failed, there are no choices")
            continue
        body = Row.of(found.place, tree)
        request = row.row("request")
        said = {} if request is None else settings(request)
        response = Response.of(body, None if request is None else params(request), row.text("custom_id"))
        yield [sample(choice, response, gaps) for choice in body.rows("choices") or []], said


def _body(value: object) -> dict[str, object] | None:
    """The body with `choices`, wherever it is; None if there is none."""
    for _ in range(3):  # {"response": {"body": {"choices": ...}}}
        if not isinstance(value, dict):
            return None
        if isinstance(value.get("choices"), list):
            return value
        value = value.get("response", value.get("body"))
    return None


def _ours(value: object) -> bool:
    if isinstance(value, list):
        return bool(value) and _ours(value[0])
    body = _body(value) or {}
    choices = body.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return body.get("object") != CHUNK and has(first, "finish_reason")


FORMAT = Format(
    "OpenAI-compatible responses",
    "vLLM",
    "bodies with choices, of completions or chat completions, alone or in a batch's output",
    _opened,
    of_json=_ours,
)
