"""The table of what a correction removed adds up the ledger's own lines, and is not there without one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lockstep.config import CorrectionsConfig
from lockstep.dashboard.corrections import SIGNS, removals
from lockstep.dashboard.report import render
from lockstep.dashboard.units import ABSENT
from lockstep.trace import RunDirectory
from lockstep.trace.metrics import encode_line
from lockstep.train import ledger
from lockstep.train.corrections import CORRECTIONS

Line = Callable[..., dict[str, Any]]
Run = Callable[..., RunDirectory]
Rows = list[tuple[float, float, float]]


def measured(kind: str, rows: Rows) -> dict[str, Any]:
    """The ledger's metrics of tokens given as (anchor, sampler, advantage), each a sequence of its own."""
    anchor, sampler, advantages = torch.tensor(rows, dtype=torch.float32).T
    found = CORRECTIONS[kind](anchor, sampler, torch.arange(len(rows)), CorrectionsConfig(type=kind))  # type: ignore[arg-type]
    return ledger.metrics([ledger.entry(advantages, found, advantages > 1)])


STEP_1: Rows = [(-0.5, -3.0, 1.0), (-1.0, -1.0, 1.0), (-4.0, -0.5, -2.0), (-1.0, -1.0, 0.0)]
STEP_2: Rows = [(-1.0, -1.1, -1.0), (-1.0, -1.0, 3.0)]


def test_the_table_by_hand() -> None:
    lines = [{"step": number, **measured("masked", rows)} for number, rows in ((1, STEP_1), (2, STEP_2))]
    table = removals(lines)
    assert table is not None and table.steps == 2
    assert table.columns == (
        "advantage", "tokens", "kept", "capped", "too high", "too low", "removed", "of |advantage|",
    )  # fmt: skip
    assert table.rows == (
        ("positive", "3", "2", "0", "1", "0", "33.3 %", "20.0 %"),
        ("negative", "2", "1", "0", "0", "1", "50.0 %", "66.7 %"),
        ("zero", "1", "1", "0", "0", "0", "0 %", ABSENT),
        ("all", "6", "4", "0", "1", "1", "33.3 %", "37.5 %"),
    )


def test_a_little_is_not_said_to_be_nothing() -> None:
    line = measured("masked", [(-0.5, -3.0, 1.0)] + [(-1.0, -1.0, 1.0)] * 4000)
    table = removals([line])
    assert table is not None
    assert table.rows[0][-2:] == ("< 0.1 %", "< 0.1 %")


def test_without_a_correction_there_is_no_table(make_line: Line) -> None:
    assert removals([]) is None
    assert removals([make_line(1), make_line(2)]) is None


def test_the_signs_are_those_of_the_ledger() -> None:
    assert set(SIGNS) == set(ledger.SIGNS)


rows = st.lists(
    st.tuples(st.floats(-6, 0), st.floats(-6, 0), st.sampled_from([-2.0, 0.0, 0.25])), min_size=1, max_size=20
)


@pytest.mark.parametrize("kind", sorted(CORRECTIONS))
@given(steps=st.lists(rows, min_size=1, max_size=4))
def test_the_table_adds_up(kind: str, steps: list[Rows]) -> None:
    table = removals([measured(kind, step) for step in steps])
    assert table is not None
    numbers = [[int(cell) for cell in row[1:-2]] for row in table.rows]
    *signs, whole = numbers
    assert [sum(column) for column in zip(*signs, strict=True)] == whole
    assert whole[0] == sum(len(step) for step in steps)
    assert all(row[0] == sum(row[1:]) for row in numbers), "every token is in one column"
    assert all(len(row) == len(table.columns) for row in table.rows)


def test_the_report_has_it_only_if_the_run_used_one(tmp_path: Path, make_run: Run, make_line: Line) -> None:
    plain = render(make_run(tmp_path / "plain", steps=2))
    assert "What the correction removed" not in plain and "ESS after correction" not in plain
    run = make_run(tmp_path / "run", steps=0, outcome=None, max_steps=2, corrections={"type": "masked"})
    lines = [make_line(number, **measured("masked", found)) for number, found in ((1, STEP_1), (2, STEP_2))]
    run.metrics_file.write_bytes(b"".join(encode_line(line) for line in lines))
    page = render(run)
    assert "What the correction removed" in page and "ESS after correction" in page
    assert "over 2 steps with <code>corrections.type = masked</code>" in page
    assert "<th>too high</th>" in page and "<td>66.7 %</td>" in page


def test_an_old_run_without_the_section_has_a_report(tmp_path: Path, make_run: Run) -> None:
    """Written before there were corrections: neither the lines nor the configuration speak of them."""
    run = make_run(tmp_path, steps=1)
    text = run.config_file.read_text()
    head, _, rest = text.partition("[corrections]")
    run.config_file.write_text(head + rest.partition("\n\n")[2])
    assert "corrections" not in run.config_file.read_text()
    assert "What the correction removed" not in render(run)
