from __future__ import annotations

import pytest

from bench import result, swap
from bench.contest import Standing
from bench.options import OURS, Options
from bench.referee import Unfair
from bench.result import Figure
from lockstep import models
from lockstep.adapters.engines.process import Program
from lockstep.models.tiny import build_random, small


@pytest.fixture
def held(monkeypatch, tmp_path):
    """Answers of a contest that was not held."""
    model = models.load(str(build_random(tmp_path / "model", small("llama"))))
    monkeypatch.setattr(models, "load", lambda _: model)

    def answers(lost):
        rounds = tuple(
            {"seconds": s, "at_once": 100 * s, "sampler": s, "lost": lost} for s in (9.0, 0.001, 0.003, 0.002)
        )
        program = Program(OURS, tmp_path, tmp_path, {}, {})
        monkeypatch.setattr(swap, "hold", lambda *_: {OURS: Standing(program, {}, rounds, 1.0)})

    return answers


def test_the_figures_are_of_the_counted_rounds(held):
    held(0)
    found = swap.run(Options(trial=True))
    assert [(round(f.median, 6), round(f.low, 6), round(f.high, 6)) for f in found.figures] == [
        (2.0, 1.0, 3.0), (200.0, 100.0, 300.0), (2.0, 1.0, 3.0),
    ]  # fmt: skip
    assert [f.bar for f in found.figures] == [50.0, None, 1.0]
    assert not found.comparisons


def test_a_lost_token_is_no_result(held):
    held(1)
    with pytest.raises(Unfair, match="no token is lost"):
        swap.run(Options(trial=True))


def test_figures_are_in_the_file_and_in_the_table(tmp_path, monkeypatch):
    from bench import table

    figure = Figure.of("pause", "ms", [3.0, 1.0, 2.0], 50.0)
    result.Result("swap", {}, {}, (), {}, figures=(figure,)).write(tmp_path)
    made = table.table(tmp_path)
    assert "| pause | **2 ms** (1 to 3) | <= 50 ms |" in made
    assert "| what | peer |" not in made, "no table of comparisons without one"
