"""One forward pass over all tokens of a step, whatever completions and chunks they belong to.

In: a `Step` and the serving generation. Out: the hidden row that decides each completion's next token. Keys and values
of the step's tokens are in the cache afterwards, and jobs that want logprobs of their prompt have those of its rows.

Letters: T packed tokens, S completions, N prompt tokens that are predicted, E hidden size, K kv heads, D head dim.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lockstep.engine.kv import KeyValues
from lockstep.engine.scheduler import Step
from lockstep.engine.weights import Generation
from lockstep.kernels.attention import plan_tiles, slots
from lockstep.kernels.head import Targets, target_logprobs
from lockstep.models import Architecture
from lockstep.models.decoder import PagedKeys, paged_hidden_states


def last_hidden(step: Step, generation: Generation, arch: Architecture, kv: KeyValues) -> Tensor:
    """Hidden rows [S, E] of the last token that each completion of the step runs."""
    kv.copy(step.copies)
    device = generation.device
    ends = np.cumsum(step.counts)
    tables = [kv.blocks(completion.pages) for completion in step.completions]
    ids = [c.tokens[a : a + n] for c, a, n in zip(step.completions, step.starts, step.counts, strict=True)]
    rows = np.stack((np.concatenate(ids), positions_of(step), slots(step.starts, step.counts, tables).numpy()))
    ids_T, positions_T, slots_T = torch.from_numpy(rows).to(device)
    tiles = plan_tiles(step.starts, step.counts, tables, device=device)
    keys = PagedKeys(kv.store, tiles, slots_T)
    hidden_TE = paged_hidden_states(generation.prepared.operands, arch, ids_T, positions_T, keys)
    _score_prompts(step, hidden_TE, generation)
    return hidden_TE[torch.from_numpy(ends - 1).to(device)]


def positions_of(step: Step) -> np.ndarray:
    """int64 [T]: where each row of the step stands in its sequence."""
    starts, counts = np.asarray(step.starts), np.asarray(step.counts)
    ends = counts.cumsum()
    return np.arange(ends[-1]) + np.repeat(starts - ends + counts, counts)


def _score_prompts(step: Step, hidden_TE: Tensor, generation: Generation) -> None:
    """Give each job that wants them the logprobs of the prompt tokens that rows of this step predict.

    What was given for these rows before is replaced: a step may be run again, and a prompt may begin anew. A completion
    that runs the prompt once more after it was whole gives nothing.
    """
    first = 0
    for completion, start, count in zip(step.completions, step.starts, step.counts, strict=True):
        rows = slice(first, first + min(count, completion.num_prompt - 1 - start))
        first += count
        job = completion.job
        if job.forked or not job.request.params.prompt_logprobs:
            continue
        while (given := sum(map(len, job.prompt_logprobs))) > start:
            job.prompt_logprobs.pop()
            job.prompt_versions.pop()
        assert given == start, f"logprobs of {given} prompt tokens, the step runs from {start}"
        if rows.start < rows.stop:
            ids = job.prompt[start + 1 : start + 1 + rows.stop - rows.start].astype(np.int64)
            ids_N = torch.from_numpy(ids).to(hidden_TE.device)
            targets = Targets(ids_N, job.request.params.temperature or 1.0)
            logprobs_N, _ = target_logprobs(hidden_TE[rows], generation.prepared.head, targets)
            job.prompt_logprobs.append(logprobs_N.cpu().numpy())
            job.prompt_versions.append(generation.version.number)
