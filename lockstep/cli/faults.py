"""`lockstep faults`: the catalogue, and `lockstep faults show CODE`: one page of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import orjson
from cyclopts import App
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lockstep.parity.catalogue import CATALOGUE, COMMON, SECTIONS, find, of_layer
from lockstep.parity.catalogue.citation import citations
from lockstep.parity.fault import Fault, Layer

faults = App(name="faults", help="List the faults that have a name, and show one: what it looks like, how to mend it.")
faults.command(
    "lockstep.cli.scoreboard:score", name="score", help="Put faults into small trainings; count what is seen."
)

ROOMY, WIDE, READABLE = 110, 150, 96
"""Columns from which a list has room for settings, and beyond which lists, and running text, are not spread out."""

COLOURS = {
    Layer.SEM: "blue",
    Layer.DAT: "cyan",
    Layer.WGT: "magenta",
    Layer.CAC: "yellow",
    Layer.PTH: "green",
    Layer.NUM: "bright_magenta",
    Layer.OBJ: "red",
}
MARKS = {True: "●", False: "○"}
SEEN = {True: "before the first step that would train on it", False: "within three steps"}


@faults.default
def list_faults(code: str = "", *, json: bool = False) -> int:
    """List every fault by layer, in the order in which to look; where there is room, with the setting that mends it.

    Parameters
    ----------
    code
        Show only this one, as `lockstep faults show` does.
    json
        Print the catalogue as JSON on stdout, and nothing else.
    """
    if code:
        return show(code, json=json)
    if json:
        print(orjson.dumps([_plain(fault) for fault in CATALOGUE.values()], option=orjson.OPT_INDENT_2).decode())
        return 0
    console = Console()
    console.print(Group(*_list(settings=console.width >= ROOMY)), width=min(console.width, WIDE))
    return 0


@faults.command
def show(code: str, *, json: bool = False) -> int:
    """Show the page of one fault: what it does and looks like, how it is reproduced, how to mend it.

    Parameters
    ----------
    code
        For example SEM01, or sem01; `lockstep faults` lists all.
    json
        Print the fault as JSON on stdout, and nothing else.
    """
    fault = find(code)
    if json:
        print(orjson.dumps(_plain(fault), option=orjson.OPT_INDENT_2).decode())
        return 0
    console = Console()
    console.print(Group(*_page(fault)), width=min(console.width, READABLE))
    return 0


def _list(*, settings: bool) -> Iterator[RenderableType]:
    for layer, common in COMMON.items():
        yield Text.assemble("\n", (layer.value, f"bold {COLOURS[layer]}"), "  ", (common, "dim italic"))
        table = Table(box=None, show_header=False, expand=settings, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(width=5, no_wrap=True, style=COLOURS[layer])
        table.add_column(width=1)
        table.add_column(ratio=2)
        if settings:
            table.add_column(ratio=3)
        for fault in of_layer(layer):
            told = (styled(fault.setting),) if settings else ()
            table.add_row(fault.code, Text(MARKS[fault.hard], "dim"), Text(fault.title), *told)
        yield Padding(table, (0, 0, 0, 2))
    hard = sum(fault.hard for fault in CATALOGUE.values())
    yield Text(
        f"\n{len(CATALOGUE)} faults; {hard} ({MARKS[True]}) must be seen {SEEN[True]}, the others {SEEN[False]}."
    )
    yield Text.assemble(("lockstep faults show CODE", "bold"), " tells all of one, and what to change.")


def _page(fault: Fault) -> Iterator[RenderableType]:
    colour = COLOURS[fault.layer]
    yield Text.assemble("\n", (f" {fault.code} ", f"bold reverse {colour}"), "  ", (fault.title, "bold"))
    yield Text.assemble((f" {fault.layer.value}", colour), (f"  {COMMON[fault.layer]}", "dim italic"))
    yield Text(f" {MARKS[fault.hard]} must be seen {SEEN[fault.hard]}", "dim")
    for field, heading in SECTIONS.items():
        yield Text(f"\n {heading}", style=f"bold {colour}")
        yield Padding(styled(getattr(fault, field)), (0, 0, 0, 3))
    yield Text()
    yield Panel(styled(fault.setting), title="What to change", title_align="left", border_style=colour, padding=(0, 1))
    yield Text("\n Where it was met", style=f"bold {colour}")
    for citation in citations(fault.source):
        address = (f"  {citation.url}", f"dim link {citation.url}") if citation.url else ""
        yield Padding(Text.assemble(citation.text, address), (0, 0, 0, 3))


def styled(text: str) -> Text:
    """A text of the catalogue: what stands between backticks is set off by colour instead."""
    parts = text.split("`")
    return Text.assemble(*((part, "cyan" if number % 2 else "") for number, part in enumerate(parts)))


def _plain(fault: Fault) -> dict[str, Any]:
    """A fault as JSON has it: its layer beside its fields, and its sources one by one."""
    sources = [asdict(citation) for citation in citations(fault.source)]
    return {"code": fault.code, "layer": fault.layer.value, **asdict(fault), "source": sources}
