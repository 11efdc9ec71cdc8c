"""`make bench-parity`: what exactness costs: the engine against itself with SDPA and free shapes, same work.

In: options. Out: a `Result`: tokens a second of both, and how far the free engine's logprobs are from the trainer's.
"""

from __future__ import annotations

from dataclasses import asdict

from bench import result
from bench.contest import hold
from bench.options import OURS, Options, announce, program
from bench.referee import Referee, require_alike
from bench.result import Line, Result
from bench.workload import Workload
from lockstep import models
from lockstep.core import SamplingParams

ROW = "parity"
FREE = "the same with SDPA, free shapes"
NAMES = (OURS, FREE)
BARS = {FREE: 1.0}
SCRIPTS = {OURS: "lockstep_engine", FREE: "lockstep_free"}
TEMPERATURE = 0.8


def run(options: Options) -> Result:
    """Hold the contest. Raises `WorkerFailed` and `Unfair`."""
    model = models.load(options.model)
    work, tokens = Workload(8 if options.trial else 64, 20, 60), 16 if options.trial else 128
    settings = {"model": str(model.path), "threads": options.threads, "max_tokens": tokens}
    entrants = [program(name, SCRIPTS[name], None, settings, options.variables()) for name in options.chosen(NAMES)]

    def question(number: int) -> dict[str, object]:
        return {"prompts": work.prompts(model.tokenizer, number), "temperature": TEMPERATURE, "seed": number}

    standings = hold(entrants, question, options.rounds, options.logs(ROW), announce)
    referee, params = Referee(model), SamplingParams(temperature=TEMPERATURE, max_tokens=tokens, ignore_eos=True)
    found = {
        name: referee.judge(name, work.prompts(model.tokenizer, 1), standing.answers[1], params)
        for name, standing in standings.items()
    }
    require_alike(found)
    return Result(
        ROW,
        {"model": options.model, "workload": asdict(work), "new_tokens": tokens, "temperature": TEMPERATURE}
        | {"rounds": options.rounds, "threads": options.threads},
        {name: result.record(standing) for name, standing in standings.items()},
        result.comparisons(Line("exact engine", "tokens/s", work.count * tokens), standings, OURS, BARS),
        {name: asdict(sanity) for name, sanity in found.items()},
    )
