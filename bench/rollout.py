"""`make bench-rollout`: 64 prompts, 128 new tokens each, T=0.8, the logprob of every drawn token.

In: options. Out: a `Result`: tokens a second, ours against vLLM's CPU backend and transformers' `generate`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from bench import result
from bench.contest import hold
from bench.options import OURS, Options, announce, program
from bench.referee import Referee, require_alike
from bench.result import Line, Result
from bench.workload import Workload
from lockstep import models
from lockstep.adapters.engines.process import Program
from lockstep.core import SamplingParams

ROW = "rollout"
TEMPERATURE = 0.8
VLLM, TRANSFORMERS, BARE = "vLLM (CPU)", "transformers", "transformers (no logprobs)"
TWO_PROCESSES, PRELOADED = "vLLM (CPU, two processes)", "vLLM (CPU, preloads)"
"""Take part if they are named. The first is vLLM's default, its engine in a process of its own; the second has the
libraries preloaded that it asks for at its start. In trials neither was faster than vLLM in one process without."""
NAMES, OTHERS = (OURS, VLLM, TRANSFORMERS, BARE), (TWO_PROCESSES, PRELOADED)
BARS = {VLLM: 2.0, TRANSFORMERS: 3.0, BARE: 3.0}
VLLM_VARIABLES = {
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB: nothing is preempted
    "VLLM_NO_USAGE_STATS": "1",
}


def run(options: Options) -> Result:
    """Hold the contest. Raises `WorkerFailed` and `Unfair`."""
    model = models.load(options.model)
    work = Workload(8, 20, 60) if options.trial else Workload(64, 20, 60)
    tokens = 16 if options.trial else 128
    entrants = [_entrant(name, str(model.path), tokens, options) for name in options.chosen(NAMES, OTHERS)]

    def question(number: int) -> dict[str, object]:
        return {"prompts": work.prompts(model.tokenizer, number), "temperature": TEMPERATURE, "seed": number}

    standings = hold(entrants, question, options.rounds, options.logs(ROW), announce)
    referee, params = Referee(model), SamplingParams(temperature=TEMPERATURE, max_tokens=tokens, ignore_eos=True)
    found = {
        name: referee.judge(name, work.prompts(model.tokenizer, 1), standing.answers[1], params)
        for name, standing in standings.items()
    }
    require_alike(found)
    line = Line("rollouts, logprobs on", "tokens/s", work.count * tokens)
    return Result(
        ROW,
        {"model": options.model, "workload": asdict(work), "new_tokens": tokens, "temperature": TEMPERATURE}
        | {"rounds": options.rounds, "threads": options.threads},
        {name: result.record(standing) for name, standing in standings.items()},
        result.comparisons(line, standings, OURS, BARS),
        {name: asdict(sanity) for name, sanity in found.items()},
        (f"{BARE} reports nothing about its tokens; the others report the logprob of each under the same contract.",)
        if BARE in standings
        else (),
    )


def _entrant(name: str, model: str, tokens: int, options: Options) -> Program:
    settings = {"model": model, "threads": options.threads, "max_tokens": tokens, "max_length": 60 + tokens}
    variables = options.variables()
    if name == OURS:
        return program(name, "lockstep_engine", None, settings, variables)
    if name in (VLLM, *OTHERS):
        apart = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1" if name == TWO_PROCESSES else "0"}
        found = program(name, "vllm_engine", "vllm", settings, variables | VLLM_VARIABLES | apart | _cores(options))
        return replace(found, variables={**found.variables, **preloaded(found.python)}) if name == PRELOADED else found
    return program(
        name, "transformers_generate", "transformers", settings | {"logprobs": name == TRANSFORMERS}, variables
    )


def _cores(options: Options) -> dict[str, str]:
    """vLLM binds a thread to each of the cores it is given."""
    return {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(str(core) for core in sorted(os.sched_getaffinity(0))[: options.threads])
    }


def preloaded(python: Path, system: Path = Path("/usr/lib")) -> dict[str, str]:
    """The libraries that vLLM asks for at its start "for best performance": Intel's OpenMP, which comes with it, and
    tcmalloc, if the system has it (Debian: libtcmalloc-minimal4)."""

    def there() -> Iterator[Path]:
        yield from sorted(system.glob("*/libtcmalloc_minimal.so.4"))[:1]
        yield from sorted((python.parents[1] / "lib").glob("libiomp5.so"))

    found = ":".join(map(str, there()))
    return {"LD_PRELOAD": found} if found else {}
