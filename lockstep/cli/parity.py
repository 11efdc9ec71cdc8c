"""`lockstep parity A B`: do two engines compute the same numbers? If not: which layer, which cause, which setting."""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
from cyclopts import Parameter
from rich.console import Console

from lockstep.errors import InputError, LockstepError, message

if TYPE_CHECKING:
    from lockstep.adapters.engines.audit import Audit
    from lockstep.adapters.engines.spec import Spec
    from lockstep.adapters.engines.workload import Workload
    from lockstep.parity.report import AuditReport


@Parameter(name="*")
@dataclass(frozen=True)
class Drawing:
    """What is asked of the engine.

    Parameters
    ----------
    temperature
        Of the logits, above 0.
    top_p
        Mass of the most likely tokens that is kept.
    top_k
        Number of the most likely tokens that are kept; 0: all.
    repetition_penalty
        Above 1: tokens that have occurred become less likely.
    max_tokens
        Of each completion.
    prompts
        Of each step.
    n
        Completions of each prompt.
    steps
        Of the audit; before every one but the first there are new weights.
    seed
        Of prompts and draws.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    max_tokens: int = 24
    prompts: int = 4
    n: int = 4
    steps: int = 3
    seed: int = 0

    def workload(self) -> Workload:
        """The same as a workload. Raises `InputError` for a value out of range."""
        from lockstep.adapters.engines.workload import Workload
        from lockstep.core import SamplingParams

        params = SamplingParams(
            temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, n=self.n, max_tokens=self.max_tokens,
            repetition_penalty=self.repetition_penalty, ignore_eos=True,
        )  # fmt: skip
        return Workload(params, self.prompts, self.steps, seed=self.seed)


_DRAWING = Drawing()


def parity(
    engine: str,
    scorer: str = "",
    *,
    model: str = "",
    drawing: Annotated[Drawing, Parameter(name="*")] = _DRAWING,
    output: Path | None = None,
    json: bool = False,
) -> int:
    """Draw with one engine, score with another, through a weight update, and name what makes them differ.

    An engine is a word: `vllm:smollm2,logprobs_mode=processed_logprobs`, `engine:smollm2`, `trainer:smollm2`,
    `transformers:smollm2,dtype=float32`, `openai:URL,model=NAME`. Exit code 0: parity; 1: a fault, or a difference that
    no cause explains; 2: it could not be carried through.

    Parameters
    ----------
    engine
        The side that draws the tokens.
    scorer
        The side that scores them; Lockstep's trainer with the same model if it is not given.
    model
        Name or directory of the model, where neither side names it.
    drawing
        What is asked of the engine.
    output
        A directory for report.html and report.json.
    json
        Print the report as one JSON document, and nothing else.
    """
    from lockstep.adapters.engines.spec import parse

    first = parse(engine)
    second = parse(scorer) if scorer else parse(f"trainer:{_model(first, None, model)}")
    report, failure = _audited(first, second, _model(first, second, model), drawing.workload())
    document = (
        orjson.dumps(report.plain(), option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY, default=str) + b"\n"
    )
    if output is not None:
        _write(report, document, output)
    if isinstance(failure, InputError) and not report.findings:
        raise failure  # it could not be begun: there is nothing to show but what to change
    if json:
        sys.stdout.write(document.decode())
    else:
        from lockstep.cli.parity_text import show

        show(report, output)
    return report.exit_code


def _model(first: Spec, second: Spec | None, model: str) -> str:
    """The one model that is meant. Raises `InputError` if there are two, or none."""
    named = [one.what for one in (first, second) if one is not None and one.kind != "openai"]
    found = {*named, *([model] if model else [])}
    if len(found) != 1:
        got = " and ".join(sorted(found)) or "none"
        do = "Name it once, and only once" if found else "Give --model"
        raise InputError(message("audit (model)", "both sides run one model", got=got, expected="one name", do=do))
    return found.pop()


def _audited(first: Spec, second: Spec, model: str, workload: Workload) -> tuple[AuditReport, LockstepError | None]:
    """Open both sides and look. What fails on the way is part of the report, and told beside it."""
    from lockstep import models
    from lockstep.adapters.engines.audit import Audit
    from lockstep.adapters.engines.opening import guarded, opened
    from lockstep.adapters.engines.publisher import Publisher
    from lockstep.trace.manifest import machine, versions

    console = Console(file=sys.stderr)
    facts: dict[str, Any] = {"model": model, **machine(), **versions()}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack, console.status("loading") as status:
        publisher = Publisher(models.load(model), Path(folder))

        def announce(text: str) -> None:
            status.update(text)

        with guarded(first, second):
            sides = [opened(spec, publisher, stack, Path(folder), announce) for spec in (first, second)]
        audit: Audit = Audit(sides[0], sides[1], publisher, workload, announce)
        failure: LockstepError | None = None
        try:
            with guarded(first, second):
                for finding in audit.run():
                    console.log(f"step {finding.step}: {finding.status}", markup=False, highlight=False)
        except LockstepError as error:
            failure = error
        return audit.report(str(first), str(second), facts, str(failure or "")), failure


def _write(report: AuditReport, document: bytes, output: Path) -> None:
    from lockstep.parity.report import page
    from lockstep.trace.durable import replace_file

    output.mkdir(parents=True, exist_ok=True)
    replace_file(output / "report.json", document)
    replace_file(output / "report.html", page(report).encode())
