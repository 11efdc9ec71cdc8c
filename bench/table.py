"""The README's table, made from bench/results: a line for each comparison, and nothing that no result file says.

In: bench/results/*.json. Out: the text between the markers of README.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import result
from lockstep.errors import InputError, message
from lockstep.trace.durable import replace_file

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
HEAD = ("| what | peer | ours | theirs | ratio (range) | bar |", "| --- | --- | --- | --- | --- | --- |")
OWN_HEAD = ("| of our own | median (range) | bar |", "| --- | --- | --- |")
ORDER = ("rollout", "parity", "train", "learn", "decode1")
"""Rows in the order of the table; others come after them, by name."""


def table(folder: Path = result.RESULTS) -> str:
    """Markdown; empty if there is no result. Raises `InputError` for a file that is none."""
    trees = sorted((result.read(file) for file in folder.glob("*.json")), key=_place)
    lines = [_line(comparison) for tree in trees for comparison in tree["comparisons"]]
    own = [_own(figure) for tree in trees for figure in tree["figures"]]
    tables = [(*HEAD, *lines, "")] * bool(lines) + [(*OWN_HEAD, *own, "")] * bool(own)
    return "\n".join((*(line for one in tables for line in one), *_machines(trees))) if tables else ""


def within(page: str, made: str) -> str:
    """`page` with `made` between its markers. Raises `InputError` if they are not there."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        rule, do = "the table has its place", "Put the two markers where the table shall be"
        raise InputError(message("README", rule, got="no markers", expected=f"{BEGIN} and {END}", do=do))
    return f"{before}{BEGIN}\n{made}\n{END}{after}" if made else f"{before}{BEGIN}\n{END}{after}"


def rewrite(page: Path = README, folder: Path = result.RESULTS) -> None:
    """Put the table into `page`."""
    replace_file(page, within(page.read_text(encoding="utf-8"), table(folder)).encode())


def _place(tree: dict[str, Any]) -> tuple[int, str]:
    row = tree["row"]
    return (ORDER.index(row) if row in ORDER else len(ORDER), row)


def _line(found: dict[str, Any]) -> str:
    bound = "" if found["theirs"] is not None else "> "
    bar = "" if found["bar"] is None else f">= {found['bar']:g}x"
    cells = (
        found["what"],
        found["peer"],
        _number(found["ours"], found["unit"]),
        _number(found["theirs"], found["unit"]),
        f"{bound}**{_ratio(found['ratio'])}x** ({_ratio(found['low'])} to {_ratio(found['high'])})",
        bar,
    )
    return f"| {' | '.join(cells)} |"


def _own(found: dict[str, Any]) -> str:
    bar = "" if found["bar"] is None else f"<= {found['bar']:g} {found['unit']}"
    low, high = (_number(found[end], "").strip() for end in ("low", "high"))
    return f"| {found['what']} | **{_number(found['median'], found['unit'])}** ({low} to {high}) | {bar} |"


def _number(value: float | None, unit: str) -> str:
    return "not reached" if value is None else f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _machines(trees: Sequence[dict[str, Any]]) -> list[str]:
    """Where and when: one sentence for each machine that results come from."""
    found: dict[str, list[dict[str, Any]]] = {}
    for tree in trees:
        machine = tree["machine"]
        memory = f", {machine['memory_gib']:.0f} GiB" if machine["memory_gib"] else ""
        found.setdefault(f"{machine['cores']} cores of {machine['cpu']}{memory}", []).append(tree)
    lines = []
    for name, members in found.items():
        dates = sorted({tree["date"] for tree in members})
        when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
        which = "" if len(found) == 1 else f" ({', '.join(tree['row'] for tree in members)})"
        lines.append(f"Measured on {name}, {when}{which}; the ratio is the median of the rounds of one run.")
    return lines
