"""docs/run-directory.md says what is on the disk: no column, key or file more or less."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import orjson

from lockstep.config import RunConfig
from lockstep.core import Decision
from lockstep.core import Path as TokenPath
from lockstep.trace import RolloutRecord, RunDirectory
from lockstep.trace.rollouts import SCHEMA
from lockstep.trace.run import MAY_CHANGE

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "run-directory.md").read_text(encoding="utf-8")


def first_cells(heading: str) -> set[str]:
    """What the first column of the table under a heading names in code."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row.split(" | ")[0])}


def test_every_column_of_the_rollouts_is_described() -> None:
    assert first_cells("Rollouts") == set(SCHEMA.names)


def test_every_key_of_the_manifest_is_described(tmp_path: Path) -> None:
    with RunDirectory.start(tmp_path, RunConfig()) as run:
        run.finish("finished", {})
        written = set(orjson.loads(run.manifest_file.read_bytes()))
    assert first_cells("manifest.json") == written | {"model", "task", "invariance", "threads"}


def test_every_file_of_a_run_is_described(tmp_path: Path, make_record: Callable[..., RolloutRecord]) -> None:
    with RunDirectory.start(tmp_path, RunConfig()) as run:
        run.append({"step": 10})
        run.append_evaluation({"step": 10})
        run.write_rollouts(10, [make_record()])
        run.write_refusal(10, Decision("reject", "p", "no"), [make_record()])
    written = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()} - {".lock"}
    described = set(re.findall(r"^\| `([^`]+)` \|", PAGE.split("\n## ")[0], re.MULTILINE))
    assert written <= described
    others = {"checkpoints/", "weights/step_10/", "report.html", "profile.json", "parity/findings.jsonl"}
    assert described - written == others


def test_what_may_change_and_how_tokens_came_about_is_described() -> None:
    promise = PAGE.split("**A resumed run is the same run.**")[1].split("\n\n")[0]
    assert set(re.findall(r"`([^`]+)`", promise)) == set(MAY_CHANGE)
    assert ", ".join(f"{path.value} {path.name.lower()}" for path in TokenPath) in PAGE
