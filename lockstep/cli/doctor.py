"""`lockstep doctor`: is this machine fit, and what will decide the bits? With a RUN: is that run in parity?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table


def doctor(run: Path | None = None, *, model: str = "tiny", output: Path | None = None, json: bool = False) -> int:
    """Look at this machine; or, given RUN, at every step that a run has recorded. Exit code 1 if it shows a fault.

    Parameters
    ----------
    run
        A run directory, finished or not, or what another framework wrote: completions of TRL, rollouts of verl, token
        exports of prime-rl, streams of PipelineRL, responses of vLLM. It is only read.
    model
        Without RUN: on whose weights rows are probed. A name from `lockstep models list`, or an HF directory.
    output
        With RUN: where to write the report, as JSON.
    json
        Print what was found as one JSON document, and nothing else.
    """
    if run is None:
        return _machine(model, json=json)
    from lockstep.cli.checkup import examine
    from lockstep.cli.checkup_text import show
    from lockstep.trace.durable import replace_file

    found = examine(run)
    document = orjson.dumps(found.plain(), option=orjson.OPT_INDENT_2) + b"\n"
    if output is not None:
        replace_file(output, document)
    if json:
        sys.stdout.write(document.decode())
    else:
        show(found, output)
    return found.exit_code


def _machine(model: str, *, json: bool) -> int:
    """Print versions, processor and threads, and run the invariance probe."""
    import torch

    from lockstep import models
    from lockstep.kernels.probe import Subject, invariance_probe
    from lockstep.models.checkpoint import read_parameters
    from lockstep.models.prepared import head_weight
    from lockstep.trace.manifest import machine, versions
    from lockstep.trace.metrics import plain

    facts: dict[str, Any] = {**machine(), "threads": torch.get_num_threads(), **versions()}
    found = models.load(model)
    heads = (found.arch.num_heads, found.arch.num_kv_heads, found.arch.head_dim)
    for dtype in (torch.bfloat16, torch.float32):
        params = read_parameters(found.path, found.arch, dtype)
        subject = Subject(params, head_weight(params, found.arch, "float32"), heads)
        short = str(dtype).removeprefix("torch.")
        facts |= {f"{short}: {name}": what for name, what in invariance_probe(subject).items()}
    if json:
        sys.stdout.write(orjson.dumps(plain(facts), option=orjson.OPT_INDENT_2).decode() + "\n")
        return 0
    console = Console(soft_wrap=True)
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in facts.items():
        table.add_row(name, ", ".join(map(str, value)) if isinstance(value, list) else str(value))
    console.print(table)
    console.print("rows are invariant here: engine and trainer will agree bit for bit")
    return 0
