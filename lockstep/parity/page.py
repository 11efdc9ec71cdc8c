"""A template as one HTML file: no scripts, and no fonts or images from elsewhere, so that hostile text stays text.

In: a template of lockstep/parity, values for it. Out: HTML, with the style of page.css.
"""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def rendered(template: str, **values: Any) -> str:
    """The page; `template` is a path below lockstep/parity. Every value is escaped."""
    loader = PackageLoader("lockstep.parity", ".")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style, _, _ = loader.get_source(environment, "page.css")
    return environment.get_template(template).render(style=Markup(style), **values)
