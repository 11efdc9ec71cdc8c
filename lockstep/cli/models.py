"""`lockstep models list | pull | path`."""

from __future__ import annotations

from cyclopts import App
from rich.console import Console
from rich.table import Table

from lockstep.cli.progress import ProgressBars

models = App(name="models", help="List, pull and locate models.")


@models.command(name="list")
def list_models() -> int:
    """What can be named where a MODEL is asked for; an HF directory can be given too."""
    from lockstep.models.pull import CATALOGUE, is_pulled

    table = Table("name", "what it is", "download", "here", box=None, pad_edge=False)
    for name, entry in CATALOGUE.items():
        table.add_row(name, entry.summary, f"{entry.download_mb} MB", "yes" if is_pulled(name) else "no")
    Console().print(table)
    return 0


@models.command
def pull(name: str) -> int:
    """Fetch a model, check its hash, convert it to an HF directory in the cache, print where it lies.

    An interrupted pull goes on where it stopped.

    Parameters
    ----------
    name
        A name from `lockstep models list`.
    """
    from lockstep.models.pull import pull as pull_model

    with ProgressBars() as bars:
        directory = pull_model(name, bars.update)
    print(directory)
    return 0


@models.command
def path(name: str) -> int:
    """Print the HF directory of a model, pulled if need be.

    Parameters
    ----------
    name
        A name from `lockstep models list`, or an HF directory.
    """
    from lockstep.models import resolve

    with ProgressBars() as bars:
        directory = resolve(name, bars.update)
    print(directory)
    return 0
