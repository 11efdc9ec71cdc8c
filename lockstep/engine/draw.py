"""From hidden rows to drawn tokens: which completions draw, with which uniform, and what they are told.

In: a step that has run, its hidden rows, the serving generation. Out: the drawn tokens, appended to their completions.

Letters: S completions of the step, N rows that are drawn from, V vocabulary, E hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from lockstep.core import Path
from lockstep.engine.request import Completion
from lockstep.engine.scheduler import Step
from lockstep.engine.uniforms import uniforms_of
from lockstep.engine.weights import Generation
from lockstep.errors import NumericsError, message
from lockstep.kernels.adjust import History
from lockstep.kernels.head import head_logits
from lockstep.kernels.sampling import sample


def draw(step: Step, hidden_SE: Tensor, generation: Generation) -> list[tuple[Completion, int]]:
    """Append a token to every completion whose last known token has run; return them with their new token.

    When a prompt is whole, all completions of its job draw from the one row. Raises `NumericsError`, with nothing
    appended, if a logprob is not finite.
    """
    chosen = [(row, completion, path) for row, path in _deciding(step) for completion in _drawers(step, row)]
    if not chosen:
        return []
    rows = np.array([row for row, _, _ in chosen])
    unique, place = np.unique(rows, return_inverse=True)
    device = hidden_SE.device
    completions = [completion for _, completion, _ in chosen]
    deciding_NE = hidden_SE[torch.from_numpy(unique).to(device)]
    _require_finite("hidden state", deciding_NE.float().sum(-1).cpu().numpy()[place], completions)
    logits_NV = head_logits(deciding_NE, generation.prepared.head)
    if len(unique) < len(rows):
        logits_NV = logits_NV[torch.from_numpy(place).to(device)]
    params = [completion.job.request.params for completion in completions]
    histories = [_history(completion) for completion in completions]
    drawn = sample(logits_NV, params, uniforms_of(completions), histories)
    _require_finite("logprob", drawn.logprobs, completions)
    number = generation.version.number
    tokens, logprobs = drawn.token_ids.tolist(), drawn.logprobs.tolist()
    for (_, completion, path), token, logprob, support in zip(chosen, tokens, logprobs, drawn.supports, strict=True):
        completion.append(token, logprob, number, path, support)
    return list(zip(completions, tokens, strict=True))


def _deciding(step: Step) -> Iterator[tuple[int, Path]]:
    """Index and path of the completions whose last known token is in this step."""
    for row, completion in enumerate(step.completions):
        start, end = step.starts[row], step.starts[row] + step.counts[row]
        if end == completion.length:
            yield row, _path(completion, start)


def _path(completion: Completion, start: int) -> Path:
    if completion.recomputing:
        return Path.RECOMPUTE
    if start >= completion.num_prompt:
        return Path.DECODE
    return Path.PREFILL if start == 0 else Path.CHUNK


def _drawers(step: Step, row: int) -> tuple[Completion, ...]:
    completion = step.completions[row]
    return (completion,) if completion.job.forked else completion.job.completions


def _history(completion: Completion) -> History | None:
    """What penalties and bad words look at; None if there are none."""
    params = completion.job.request.params
    if not params.adjusts:
        return None
    return History(params, completion.job.prompt, completion.tokens[completion.num_prompt : completion.length])


def _require_finite(what: str, values: np.ndarray, completions: list[Completion]) -> None:
    wrong = np.flatnonzero(~np.isfinite(values))
    if wrong.size:
        completion = completions[int(wrong[0])]
        who = f"token {completion.num_drawn} of ({completion.job.request.id}/{completion.index})"
        rule, do = f"its {what} must be finite", "Check the weights of this version for overflow"
        raise NumericsError(message(who, rule, got=values[wrong[0]], expected="a finite number", do=do))
