"""`make bench-decode1`: one sequence, greedy, 128 tokens after a prompt of 32, ours against llama.cpp in bf16.

In: options. Out: a `Result`: tokens a second, the prompt's forward included. Ours computes every token's logprob as
well; llama.cpp takes the largest logit.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from bench import result
from bench.contest import Standing, hold
from bench.options import OURS, Options, announce, program
from bench.referee import unfair
from bench.result import Line, Result
from bench.workload import Workload
from lockstep import models
from lockstep.adapters.engines.process import Program
from lockstep.config import cache_dir

ROW = "decode1"
LLAMA = "llama.cpp (bf16)"
NAMES = (OURS, LLAMA)
BARS = {LLAMA: 1.0}
FEWEST_ALIKE = 8
"""Greedy tokens that agree before two roundings may choose differently; a wrong conversion agrees on none."""


def run(options: Options) -> Result:
    """Hold the contest. Raises `WorkerFailed`, `Unfair`, and `NoCompiler` where llama.cpp cannot be built."""
    model = models.load(options.model)
    work, tokens = Workload(1, 32, 32), 16 if options.trial else 128
    entrants = [_entrant(name, str(model.path), tokens, options) for name in options.chosen(NAMES)]

    def question(number: int) -> dict[str, object]:
        return {"prompts": work.prompts(model.tokenizer, number), "temperature": 0.0, "seed": number}

    standings = hold(entrants, question, options.rounds, options.logs(ROW), announce)
    sanity = {name: judge(name, standing, standings[OURS], tokens) for name, standing in standings.items()}
    line = Line("batch-1 decode, greedy", "tokens/s", tokens)
    return Result(
        ROW,
        {"model": options.model, "workload": asdict(work), "new_tokens": tokens, "temperature": 0.0}
        | {"rounds": options.rounds, "threads": options.threads},
        {name: result.record(standing) for name, standing in standings.items()},
        result.comparisons(line, standings, OURS, BARS),
        sanity,
    )


def judge(name: str, theirs: Standing, ours: Standing, tokens: int) -> dict[str, Any]:
    """How many tokens of each round agree with ours from the start on. Raises `Unfair` if in no round enough do, or
    where not all tokens are there."""
    alike = []
    for mine, other in zip(ours.answers, theirs.answers, strict=True):
        (first,), (second,) = mine["tokens"], other["tokens"]
        if len(second) != tokens:
            raise unfair(name, "it draws what was asked", f"{len(second)} tokens", str(tokens))
        alike.append(next((i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b), tokens))
    if max(alike) < FEWEST_ALIKE:
        raise unfair(name, "greedy tokens begin alike", f"{alike} alike", f"{FEWEST_ALIKE} in some round")
    return {"tokens": tokens, "alike_with_ours": alike}


def _entrant(name: str, model: str, tokens: int, options: Options) -> Program:
    settings = {"model": model, "threads": options.threads, "max_tokens": tokens}
    if name == OURS:
        return program(name, "lockstep_engine", None, settings, options.variables())
    settings["gguf"] = str(cache_dir() / "bench" / "gguf" / f"{options.model.replace('/', '-').strip('-')}.gguf")
    return program(name, "llama_decode", "llama_cpp", settings, options.variables())
