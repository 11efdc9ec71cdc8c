"""A qualification as Markdown (GitHub's), e.g. for the summary of a CI job.

In: a `Qualification`. Out: text. Names and values are anybody's: none of them can end a cell, be markup, or be a link.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from lockstep.parity.qualify.qualification import Qualification, claims, label, verdict
from lockstep.parity.qualify.tables import Table, tables

_HARMLESS = re.compile(r"[A-Za-z0-9_./:=+,\"-]+(?: [A-Za-z0-9_./:=+,\"-]+)*")
_ACTIVE = re.compile(
    r"""[^\w\s.,:;='"()/+%?-]    # signs with a meaning
    |(?<![^\W_])_|_(?![^\W_])    # underscores that could begin or end emphasis
    |:(?=/)|(?<=www)\.           # addresses
    |^[-+=]|(?<=\d)[.)](?=\s|$)  # lists and underlines
    """,
    re.VERBOSE | re.IGNORECASE,
)


def markdown(qualification: Qualification) -> str:
    """The report. Ends with a newline."""
    return "\n".join(_lines(qualification)) + "\n"


def text(value: object) -> str:
    """A name or value so that it is read as text, on one line, wherever it stands."""
    return _ACTIVE.sub(lambda sign: "\\|" if sign[0] == "|" else f"&#{ord(sign[0])};", label(value))


def code(value: object) -> str:
    """The same, set as code."""
    words = label(value)
    return f"`{words}`" if _HARMLESS.fullmatch(words) else f"<code>{text(words)}</code>"


def _lines(qualification: Qualification) -> Iterator[str]:
    yield f"# Qualification of {text(qualification.new)} against {text(qualification.old)}"
    yield ""
    yield f"**Verdict:** {verdict(qualification, code)}"
    yield ""
    yield from (f"- {claim}" for claim in claims(qualification, code))
    for table in tables(qualification):
        yield from _table(table)


def _table(table: Table) -> Iterator[str]:
    yield from ("", f"## {table.title}", "")
    if table.note:
        yield from (table.note, "")
    yield _row(text(column) for column in table.columns)
    yield _row("---" for _ in table.columns)
    for row in table.rows:
        yield _row(_cell(cell, is_code=place in table.code) for place, cell in enumerate(row))


def _cell(cell: str, *, is_code: bool) -> str:
    if not cell:
        return ""
    return code(cell) if is_code else text(cell)


def _row(cells: Iterator[str]) -> str:
    return f"| {' | '.join(cells)} |"
