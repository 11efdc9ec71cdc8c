"""PTH: the same tokens by another way through the engine, and another number.

In: a laboratory. Out: the same, broken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from lockstep.core import SamplingParams
from lockstep.engine import draw, forward
from lockstep.engine.request import Completion
from lockstep.engine.scheduler import Step
from lockstep.harness.injection import Injection
from lockstep.harness.laboratory import Laboratory
from lockstep.kernels.adjust import History
from lockstep.kernels.attention import Tiles, plan_tiles

LEVELS = 127
"""Of int8 numbers, either side of 0."""


def short_window(laboratory: Laboratory) -> None:
    """PTH01: the kernel for decoding counts its keys one short, so that a row does not see the newest key."""

    def plan(starts: Sequence[int], counts: Sequence[int], tables: Any, **rest: Any) -> Tiles:
        seen = [max(start - 1, 0) if count == 1 else start for start, count in zip(starts, counts, strict=True)]
        return plan_tiles(seen, counts, tables, **rest)

    laboratory.patch(forward, "plan_tiles", plan)


def chunk_offset(laboratory: Laboratory) -> None:
    """PTH02: from the second chunk of a prompt on, rows stand one position too far."""
    late: dict[Completion, int] = {}

    def begins(completion: Completion, start: int, count: int) -> int | None:
        del count
        return start if 0 < start < completion.num_prompt and not completion.recomputing else None

    _shifted(laboratory, late, begins)


def resumed_offset(laboratory: Laboratory) -> None:
    """PTH03: a request whose pages were taken away goes on one position too far, once it has run again."""
    late: dict[Completion, int] = {}

    def begins(completion: Completion, start: int, count: int) -> int | None:
        whole = start + count == completion.length
        return completion.length if completion.recomputing and whole else None

    _shifted(laboratory, late, begins)


def batch_scale(laboratory: Laboratory) -> None:
    """PTH04: activations before the head are int8 with one scale for all rows of the batch."""
    _quantised_rows(laboratory, lambda rows_NE: rows_NE.abs().amax())


def last_row_scale(laboratory: Laboratory) -> None:
    """PTH05: the scale of the batch is that of its last row."""
    _quantised_rows(laboratory, lambda rows_NE: rows_NE[-1].abs().amax())


def late_penalties(laboratory: Laboratory) -> None:
    """PTH06: a step is scheduled before the last one has ended, and penalties count without its token."""
    history_by = draw._history

    def history(completion: Completion) -> History | None:
        found = history_by(completion)
        return None if found is None else History(found.params, found.prompt, found.completion[:-1])

    laboratory.patch(draw, "_history", history)


def _shifted(
    laboratory: Laboratory, late: dict[Completion, int], begins: Callable[[Completion, int, int], int | None]
) -> None:
    """Rows of a completion stand one too far, from the position that `begins` gives for one of its runs on."""
    positions_by = forward.positions_of

    def positions(step: Step) -> np.ndarray:
        found, first = positions_by(step), 0
        for completion, start, count in zip(step.completions, step.starts, step.counts, strict=True):
            at = begins(completion, start, count)
            if at is not None:
                late.setdefault(completion, at)
            # Completions of one job share the rows of their prompt, and the mistake with them.
            from_here = late.get(completion, late.get(completion.job.completions[0]) if completion.job.forked else None)
            if from_here is not None:
                rows = found[first : first + count]
                rows[rows >= from_here] += 1
            first += count
        return found

    laboratory.patch(forward, "positions_of", positions)


def _quantised_rows(laboratory: Laboratory, scale_of: Callable[[Tensor], Tensor]) -> None:
    logits_by = draw.head_logits

    def logits(hidden_NE: Tensor, weight: Any) -> Tensor:
        scale = (scale_of(hidden_NE.float()) / LEVELS).clamp(min=1e-9)
        rounded = (hidden_NE.float() / scale).round().clamp(-LEVELS, LEVELS) * scale
        return logits_by(rounded.to(hidden_NE.dtype), weight)

    laboratory.patch(draw, "head_logits", logits)


_PENALISED = SamplingParams(frequency_penalty=0.8, presence_penalty=0.5, max_tokens=14, n=4, ignore_eos=True)
_SHORT_OF_PAGES = {"pages": 16, "in_flight": False, "prompts": 6, "prefix": 40}

INJECTIONS: Sequence[Injection] = (
    Injection("PTH01", short_window),
    Injection("PTH02", chunk_offset, {"in_flight": False}),
    Injection("PTH03", resumed_offset, _SHORT_OF_PAGES),
    Injection("PTH04", batch_scale, {"exact": True}),
    Injection("PTH05", last_row_scale),
    Injection("PTH06", late_penalties, {"params": _PENALISED}),
)
