"""The terminal: fits, does not jump, survives pipes and odd numbers, and never claims parity that is not there."""

from __future__ import annotations

import io
import math
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from lockstep.config import RunConfig
from lockstep.dashboard.live import LineView, LiveView, SilentView, view
from lockstep.dashboard.progress import Progress
from lockstep.trace import Observer

Line = Callable[..., dict[str, Any]]
CONFIG = RunConfig(max_steps=40)
PLACE = {"directory": "runs/smollm2-add"}
DONE = {
    "outcome": "finished", "steps": 40, "seconds": 192.0, "accuracy_before": 0.15, "accuracy_after": 0.71,
    "parity_max": 0.0, "parity_tokens": 41235, "report": "runs/smollm2-add/report.html",
}  # fmt: skip


def terminal(width: int = 80, **changes: Any) -> Console:
    settings = {"force_terminal": True, "width": width, "height": 24, "file": io.StringIO(), "_environ": {}}
    return Console(**(settings | changes))


def frame(watched: LiveView, width: int = 80) -> list[str]:
    """What the view would draw, as text."""
    console = Console(file=io.StringIO(), width=width, color_system=None, _environ={})
    console.print(watched)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def at_step(watched: SilentView, make_line: Line, steps: int = 3, **changes: Any) -> None:
    watched.on_start(CONFIG, PLACE)
    watched.on_step(0, {"step": 0, "eval/accuracy": 0.15, "eval/num_tasks": 80})
    for step in range(1, steps + 1):
        watched.on_step(step, make_line(step, **changes))


def test_the_view_follows_the_place_it_is_shown_in() -> None:
    assert type(view(terminal(), silent=True)) is SilentView
    assert type(view(terminal(), plain=True)) is LineView
    assert type(view(terminal())) is LiveView
    assert type(view(Console(file=io.StringIO(), _environ={}))) is LineView, "a pipe or a log gets lines"
    assert type(view(terminal(_environ={"TERM": "dumb"}))) is LineView
    assert type(view(terminal(file=io.TextIOWrapper(io.BytesIO(), encoding="ascii")))) is LineView
    for kind in (SilentView(), LineView(io.StringIO()), LiveView(terminal())):
        assert isinstance(kind, Observer)


def test_silence_is_silent(capfd: pytest.CaptureFixture[str], make_line: Line) -> None:
    with view(Console(), silent=True) as watched:
        at_step(watched, make_line)
        watched.on_phase("rollout", 1, 2)
        watched.on_end(DONE)
    assert capfd.readouterr() == ("", "")


def test_lines_say_a_step_each_within_80_columns(make_line: Line) -> None:
    stream = io.StringIO()
    watched = LineView(stream)
    at_step(watched, make_line, steps=2, reward=0.5421, **{"parity/num_tokens": 1024})
    watched.on_end(DONE)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "smollm2 on addition, 40 steps in runs/smollm2-add"
    assert lines[1] == "held-out accuracy 0.150 over 80 tasks after step 0"
    assert lines[2].startswith("step 1/40  reward 0.542  parity 0.0 (1,024)  entropy 0.89  ")
    assert lines[-1] == (
        "held-out accuracy 0.15 -> 0.71, parity 0.0 over 41,235 tokens, 40 steps in 3 min 12 s: "
        "runs/smollm2-add/report.html"
    )
    assert all(len(line) <= 80 for line in lines[:-1]) and len(lines) == 5


def test_lines_tell_of_long_work_outside_the_steps_once() -> None:
    stream = io.StringIO()
    watched = LineView(stream)
    for done in range(3):
        watched.on_phase("warm start", done, 150)
    for name in ("rollout", "reward", "parity", "train", "publish"):
        watched.on_phase(name, 1, 2)
    watched.on_phase("save", 0, 0)
    assert stream.getvalue() == "warm start (150)\nsave\n"


def test_a_difference_is_loud_in_lines(make_line: Line) -> None:
    stream = io.StringIO()
    watched = LineView(stream)
    at_step(watched, make_line, steps=1, **{"parity/max": 0.0078125, "parity/frac_differing": 0.01})
    assert "parity 0.00781 (" in stream.getvalue() and " DIFFERS  " in stream.getvalue()


def test_lines_pass_through_any_encoding(make_line: Line) -> None:
    raw = io.BytesIO()
    watched = LineView(io.TextIOWrapper(raw, encoding="ascii"))
    watched.on_start(CONFIG, {"directory": "läufe/η"})
    watched.on_step(1, make_line(1, reward=None))
    assert b"in l\\xe4ufe/\\u03b7" in raw.getvalue() and b"reward -  " in raw.getvalue()


def test_a_reader_that_goes_away_does_not_end_the_run() -> None:
    program = (
        "import sys, lockstep.dashboard.live as live, rich.console\n"
        "watched = live.view(rich.console.Console())\n"
        "for n in range(2000): watched.on_phase(f'phase {n}', 0, 0)\n"
        "sys.stderr.write('still here')"
    )
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", program], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "still here")


def test_every_row_is_there_from_the_first_frame_on(make_line: Line) -> None:
    watched = LiveView(terminal(), Progress(lambda: 0.0))
    with watched:
        watched.on_start(CONFIG, PLACE)
        first = frame(watched)
        watched.on_phase("rollout", 412, 1024)
        at_step(watched, make_line)
        watched.on_phase("train", 2, 4)
        later = frame(watched)
    labels = [row[:10].strip() for row in later]
    assert labels == ["lockstep", "", "step", "train", "", "reward", "parity", "policy", "speed", "held out"]
    assert [row[:10].strip() for row in first] == [*labels[:3], "waiting", *labels[4:]]
    text = "\n".join(later)
    for expected in (
        "smollm2 on addition",
        "runs/smollm2-add",
        "3/40",
        "2/4",
        "0.0 exactly over",
        "ess 1.000",
        "tok/s",
    ):
        assert expected in text, expected


@given(
    values=st.dictionaries(st.sampled_from([
        "reward", "entropy", "kl_new_old", "ess", "grad_norm", "parity/max", "parity/num_tokens",
        "parity/frac_differing", "time/step", "memory/peak_gb",
        "throughput/rollout_tokens_per_s", "throughput/train_tokens_per_s",
        "clamp_log_ratio_new_old_indicator", "eval/accuracy",
    ]), st.none() | st.floats(-1e6, 1e6) | st.sampled_from([math.nan, math.inf, -math.inf])),
    width=st.integers(20, 200),
    phase=st.tuples(st.sampled_from(["", "rollout", "a very long name"]), st.integers(0, 10**9), st.integers(0, 10**9)),
)  # fmt: skip
def test_no_number_and_no_width_breaks_the_view(
    values: dict[str, float | None], width: int, phase: tuple[str, int, int]
) -> None:
    watched = LiveView(terminal(), Progress(lambda: 0.0))
    watched._progress.start(CONFIG, {"directory": "runs/" + "x" * 90})
    watched.on_phase(*phase)
    watched.on_step(1, {"step": 1, **values})
    watched.on_phase(*phase)
    rows = frame(watched, width)
    assert len(rows) == 10, "one row each, none wrapped"
    assert all(cell_len(row.rstrip()) <= width for row in rows)
    stream = io.StringIO()
    LineView(stream, watched._progress).on_step(2, {"step": 2, **values})


@pytest.mark.parametrize("width", [80, 120])
def test_nothing_is_cut_at_the_widths_people_have(make_line: Line, width: int) -> None:
    watched = LiveView(terminal(width), Progress(lambda: 0.0))
    at_step(watched, make_line, steps=40)
    watched.close()
    assert not [row for row in frame(watched, width) if "…" in row]


@pytest.mark.parametrize(
    ("gate", "said"), [(True, "refused: 1.00% of 700 tokens differ"), (False, "not gated: 1.00% of")]
)
def test_a_difference_is_loud_in_the_view(make_line: Line, gate: bool, said: str) -> None:
    watched = LiveView(terminal(), Progress(lambda: 0.0))
    config = RunConfig.model_validate({"parity": {"gate": gate}})
    watched.on_start(config, PLACE)
    broken = {"parity/max": 0.0078125, "parity/frac_differing": 0.01, "parity/num_tokens": 700}
    watched.on_step(1, make_line(1, **broken))
    watched.close()
    assert said in "\n".join(frame(watched)) and "exactly" not in "\n".join(frame(watched))


def test_nothing_compared_is_not_parity(make_line: Line) -> None:
    watched = LiveView(terminal(), Progress(lambda: 0.0))
    at_step(watched, make_line, **{"parity/num_tokens": 0})
    watched.close()
    assert "refused: 0 tokens compared" in "\n".join(frame(watched))


def test_a_refused_step_ends_in_red(make_line: Line) -> None:
    console = terminal(color_system="standard")
    with LiveView(console) as watched:
        at_step(watched, make_line)
        watched.on_end({"outcome": "refused", "steps": 3, "seconds": 9.0, "report": "runs/x/report.html"})
    assert "step 4 refused: engine and trainer differ" in "\n".join(frame(watched))
    tail = console.file.getvalue().splitlines()[-3:]  # type: ignore[attr-defined]
    assert (
        "refused" in tail[1]
        and "31m" in tail[1]
        and "step 4 was refused" in tail[1]
        and "runs/x/report.html" in tail[2]
    )


def test_the_end_says_what_happened_and_where(make_line: Line) -> None:
    console = terminal(color_system=None)
    with LiveView(console) as watched:
        at_step(watched, make_line)
        watched.on_end(DONE)
        watched.on_end(DONE)  # an observer that is told twice does not fall over
    text = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert "done held-out accuracy 0.15 -> 0.71, parity 0.0 over 41,235 tokens, 40 steps in 3 min 12 s" in text
    assert "results runs/smollm2-add/report.html" in text


def test_lines_say_how_a_run_ended_otherwise() -> None:
    stream = io.StringIO()
    LineView(stream).on_end({"outcome": "interrupted", "steps": 3, "seconds": 9.0, "directory": "runs/x"})
    assert stream.getvalue() == "stopped: 3 steps in 9.0 s: runs/x\n"


def test_the_cursor_comes_back_when_the_run_falls_over() -> None:
    console = terminal()
    with pytest.raises(RuntimeError), LiveView(console) as watched:
        watched.on_start(CONFIG, PLACE)
        assert console.file.getvalue().count("\x1b[?25l") == 1  # type: ignore[attr-defined]
        raise RuntimeError
    assert console.file.getvalue().rstrip().endswith("\x1b[?25h")  # type: ignore[attr-defined]
