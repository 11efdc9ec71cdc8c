"""`make bench-growth`: how cost grows: tokens a second against batch and context, a step's time against its rollouts.

In: options. Out: a `Result` without comparisons, and bench/results/growth.svg.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bench import figure, recipe, result
from bench.contest import Spread, Standing, hold
from bench.options import OURS, Options, announce, program
from bench.result import Figure, Result
from bench.workload import Workload
from lockstep import models
from lockstep.adapters.engines.process import Program
from lockstep.models import Model

ROW = "growth"
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTEXTS = (64, 128, 256, 512, 1024, 2048, 4096)
ROLLOUTS = (16, 32, 64, 128)
NEW_TOKENS = 32
FEW = 4  # sequences of the contexts, whose keys fit into the default cache


def run(options: Options) -> Result:
    """Measure all points. Raises `WorkerFailed`."""
    model = models.load(options.model)
    shapes = [*((batch, 32) for batch in BATCHES), *((FEW, context) for context in CONTEXTS)]
    if options.trial:
        shapes = [(1, 32), (FEW, 64)]
    settings = {"model": str(model.path), "threads": options.threads, "max_tokens": NEW_TOKENS}
    engine = [program(OURS, "lockstep_engine", None, settings, options.variables())]
    drawn: dict[tuple[int, int], list[float]] = {}
    standing: Standing | None = None
    for shape in shapes:
        standing = hold(engine, _question(model, *shape), options.rounds, options.logs(ROW), announce)[OURS]
        drawn[shape] = [shape[0] * NEW_TOKENS / seconds for seconds in standing.seconds]
    assert standing is not None, "there is a shape"
    steps = {} if options.trial else {count: _steps(options, count) for count in ROLLOUTS}
    series = _series(drawn, steps)
    if not options.trial:
        figure.write(result.RESULTS / "growth.svg", series)
    return Result(
        ROW,
        {"model": options.model, "new_tokens": NEW_TOKENS, "rounds": options.rounds, "threads": options.threads},
        {OURS: {"versions": standing.versions, "series": [asdict(one) for one in series]}},
        (),
        {},
        figures=_figures(drawn),
    )


def _question(model: Model, count: int, length: int) -> Any:
    work = Workload(count, length, length)
    return lambda number: {"prompts": work.prompts(model.tokenizer, number), "temperature": 1.0, "seed": number}


def _steps(options: Options, rollouts: int) -> list[float]:
    """Seconds of steps of so many rollouts, 8 a prompt."""
    config = recipe.configuration(options, options.rounds + 1, seed=0)
    config = config.model_copy(update={"num_prompts_per_step": rollouts // config.num_generations})
    one: Program = recipe.trainer(OURS, config, options)
    return hold([one], lambda _: {"do": "step"}, options.rounds, options.logs(ROW), announce)[OURS].seconds


def _series(
    drawn: Mapping[tuple[int, int], Sequence[float]], steps: Mapping[int, Sequence[float]]
) -> tuple[figure.Series, ...]:
    batches = {batch: values for (batch, length), values in drawn.items() if length == 32}
    contexts = {length: values for (_, length), values in drawn.items() if length != 32}
    return (
        figure.Series.of(f"prompts of 32 tokens, {NEW_TOKENS} new", "sequences", "tokens/s", batches),
        figure.Series.of(f"{FEW} sequences, prompt included", "tokens of prompt", "new tokens/s", contexts),
        figure.Series.of("a GRPO step, all of it", "rollouts a step", "s", steps),
    )


def _figures(drawn: Mapping[tuple[int, int], Sequence[float]]) -> tuple[Figure, ...]:
    most = max(drawn, key=lambda shape: Spread.of(drawn[shape]).median)
    return (Figure.of(f"most tokens a second, {most[0]} sequences", "tokens/s", drawn[most]),)
