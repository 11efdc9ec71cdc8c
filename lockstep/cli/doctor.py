"""`lockstep doctor`: is this machine fit, and what will decide the bits?"""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


def doctor(model: str = "tiny") -> int:
    """Print versions, processor and threads, and run the invariance probe on the weights of MODEL.

    Parameters
    ----------
    model
        A name from `lockstep models list`, or an HF directory.
    """
    import torch

    from lockstep import models
    from lockstep.kernels.probe import Subject, invariance_probe
    from lockstep.models.checkpoint import read_parameters
    from lockstep.models.prepared import head_weight
    from lockstep.trace.manifest import machine, versions

    console = Console(soft_wrap=True)
    facts = {**machine(), "threads": torch.get_num_threads(), **versions()}
    found = models.load(model)
    heads = (found.arch.num_heads, found.arch.num_kv_heads, found.arch.head_dim)
    for dtype in (torch.bfloat16, torch.float32):
        params = read_parameters(found.path, found.arch, dtype)
        subject = Subject(params, head_weight(params, found.arch, "float32"), heads)
        short = str(dtype).removeprefix("torch.")
        facts |= {f"{short}: {name}": what for name, what in invariance_probe(subject).items()}
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in facts.items():
        table.add_row(name, ", ".join(map(str, value)) if isinstance(value, list) else str(value))
    console.print(table)
    console.print("rows are invariant here: engine and trainer will agree bit for bit")
    return 0
