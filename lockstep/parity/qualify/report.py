"""Every report of a qualification, in one folder.

In: a `Qualification`. Out: files, each whole or not there.
"""

from __future__ import annotations

from pathlib import Path

import orjson

from lockstep.parity.qualify.junit import junit
from lockstep.parity.qualify.markdown import markdown
from lockstep.parity.qualify.page import page
from lockstep.parity.qualify.qualification import Qualification
from lockstep.trace.durable import replace_file

NAMES = {"json": "qualification.json", "markdown": "report.md", "junit": "junit.xml", "html": "report.html"}


def json(qualification: Qualification) -> bytes:
    """The JSON form, indented; figures that are not finite are null. Raises `InputError` for a value not plain."""
    return orjson.dumps(qualification.plain(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def write(qualification: Qualification, folder: Path) -> dict[str, Path]:
    """Write all forms into `folder` (made if need be); their paths by the keys of `NAMES`.

    Raises `InputError` for a value that is not plain, before anything is written, and `StorageError`.
    """
    forms = {
        "json": json(qualification),
        "markdown": markdown(qualification).encode(),
        "junit": junit(qualification),
        "html": page(qualification).encode(),
    }
    paths = {kind: folder / name for kind, name in NAMES.items()}
    for kind, path in paths.items():
        replace_file(path, forms[kind])
    return paths
