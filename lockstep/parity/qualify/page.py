"""A qualification as one HTML file, for people: the verdict, what each setting does alone, every trial.

In: a `Qualification`. Out: HTML without scripts, and without fonts or images from elsewhere; the page's own policy
forbids them, so that hostile text stays text. Its figure is SVG in the page, and follows its colours, light and dark.
"""

from __future__ import annotations

from dataclasses import dataclass

from lockstep.parity.page import rendered
from lockstep.parity.qualify.qualification import Qualification, claims, label, ladder, nats
from lockstep.parity.qualify.tables import tables

WIDTH, ROW, BAR = 680, 46, 14
"""The figure, in CSS pixels: its width, the height of a row, the thickness of a bar."""

ROOM = 190
"""Pixels to the right of the longest bar, for its number."""

STANDING = {"parity": "good", "restored": "found", "outside": "bad", "undetermined": "open", "refused": "bad"}


@dataclass(frozen=True, slots=True)
class Bar:
    """A row of the figure: `top` and `length` in pixels; `length` None: nothing was measured."""

    text: str
    value: str
    outcome: str
    top: int
    length: float | None


def page(qualification: Qualification) -> str:
    """The whole page."""
    drawn = bars(qualification)
    return rendered(
        "qualify/page.html.jinja",
        verdict=qualification.verdict,
        old=label(qualification.old),
        new=label(qualification.new),
        standing=STANDING[qualification.restoration.status],
        claims=list(claims(qualification)),
        bars=drawn,
        width=WIDTH,
        height=ROW * len(drawn),
        thick=BAR,
        tables=tables(qualification),
    )


def bars(qualification: Qualification) -> list[Bar]:
    """The rows of the figure, on one linear scale from 0; what is not 0 can be seen. Empty if nothing was measured."""
    rows = ladder(qualification)
    means = [trial.mean for _, trial in rows]
    largest = max((abs(mean) for mean in means if mean is not None), default=None)
    if largest is None:
        return []
    return [
        Bar(text, _value(mean), trial.outcome, ROW * place, _length(mean, largest))
        for place, ((text, trial), mean) in enumerate(zip(rows, means, strict=True))
    ]


def _value(mean: float | None) -> str:
    return "not measured" if mean is None else f"{nats(mean)} nats"


def _length(mean: float | None, largest: float) -> float | None:
    if mean is None:
        return None
    return round(max(2.0, (WIDTH - ROOM) * (abs(mean) / largest)), 1) if mean else 0.0
