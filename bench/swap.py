"""`make bench-swap`: new weights while 64 sequences are being drawn, and the sampler: figures of our own.

In: options. Out: a `Result` without comparisons. The pause is the time for which no step can run. Prepared: the new
weights were verified and packed before (`Update.prepare`, in another thread while steps run); at once: all of it in one
call. A token that is lost makes the row fail.
"""

from __future__ import annotations

from dataclasses import asdict

from bench import result
from bench.contest import hold
from bench.options import OURS, Options, announce, program
from bench.referee import unfair
from bench.result import Figure, Result
from bench.workload import Workload
from lockstep import models

ROW = "swap"


def run(options: Options) -> Result:
    """Swap twice a round. Raises `WorkerFailed`, and `Unfair` if tokens are lost."""
    model = models.load(options.model)
    work, tokens = Workload(8 if options.trial else 64, 20, 60), 16
    settings = {"model": str(model.path), "threads": options.threads, "sequences": work.count, "max_tokens": tokens}
    entrants = [program(OURS, "lockstep_swap", None, settings, options.variables())]

    def question(number: int) -> dict[str, object]:
        return {"number": number, "prompts": work.prompts(model.tokenizer, number)}

    standing = hold(entrants, question, options.rounds, options.logs(ROW), announce)[OURS]
    counted = standing.answers[1:]
    lost = sum(answer["lost"] for answer in counted)
    if lost:
        raise unfair(OURS, "no token is lost", f"{lost} lost", "0")
    vocabulary = f"{work.count} x {model.arch.vocab_size:,}"
    return Result(
        ROW,
        {"model": options.model, "workload": asdict(work), "new_tokens": tokens, "rounds": options.rounds}
        | {"threads": options.threads},
        {OURS: result.record(standing)},
        (),
        {OURS: {"tokens_lost": lost, "sequences": work.count}},
        figures=(
            Figure.of("pause of an in-flight swap, prepared", "ms", [1e3 * a["seconds"] for a in counted], 50.0),
            Figure.of("pause of an in-flight swap, all at once", "ms", [1e3 * a["at_once"] for a in counted]),
            Figure.of(f"sampler with logprobs, {vocabulary}", "ms", [1e3 * a["sampler"] for a in counted], 1.0),
        ),
    )
