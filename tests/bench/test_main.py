from __future__ import annotations

import importlib
import sys
from pathlib import Path

import orjson
import pytest

from bench import environment, result
from bench.__main__ import ROWS, main
from bench.referee import Unfair
from bench.result import Comparison, Result
from lockstep.adapters.engines.environment import NoCompiler
from lockstep.adapters.engines.process import WorkerFailed


@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_a_module_that_says_what_it_is(row):
    module = importlib.import_module(f"bench.{row}")
    assert row == module.ROW and callable(module.run)
    assert f"bench {row}`" in module.__doc__ or f"bench-{row}`" in module.__doc__


@pytest.mark.parametrize(
    ("failure", "code"),
    [(WorkerFailed("it died"), 1), (Unfair("it did less"), 1), (NoCompiler("no compiler"), 2)],
)
def test_a_failure_is_one_message_and_writes_nothing(failure, code, monkeypatch, capsys, tmp_path):
    def run(_):
        raise failure

    monkeypatch.setattr("bench.rollout.run", run)
    monkeypatch.setattr(result, "RESULTS", tmp_path)
    assert main(["rollout"]) == code
    assert str(failure) in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_result_is_written_and_said(monkeypatch, capsys, tmp_path):
    seen = []

    def run(options):
        seen.append(options)
        return Result("train", {}, {}, (Comparison("step", "TRL", "s", 1.0, 12.0, 12.0, 11.0, 13.0),), {})

    written = Result.write
    monkeypatch.setattr("bench.train.run", run)
    monkeypatch.setattr(Result, "write", lambda self: written(self, tmp_path))
    assert main(["train", "--rounds", "3", "--threads", "2", "--only", "TRL"]) == 0
    assert (seen[0].rounds, seen[0].threads, seen[0].only, seen[0].trial) == (3, 2, ("TRL",), False)
    assert (tmp_path / "train.json").exists()
    assert "12.00x TRL (11.00 to 13.00)" in capsys.readouterr().err


def test_an_unknown_peer_is_a_mistake(capsys):
    assert main(["rollout", "--model", "tiny", "--only", "nobody"]) == 2
    assert "nobody" in capsys.readouterr().err


def test_an_unknown_row_is_a_mistake(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["nonesuch"])
    assert stop.value.code == 2
    assert "nonesuch" in capsys.readouterr().err


def test_a_trial_of_a_whole_row(tiny, monkeypatch, capsys, tmp_path):
    """Ours against transformers, which our own environment has, on a tiny model: all but the installation."""
    monkeypatch.setattr(environment, "python_of", lambda *_: Path(sys.executable))
    monkeypatch.setattr("bench.options.Options.logs", lambda self, row: tmp_path / row)
    before = sorted(result.RESULTS.glob("*"))
    only = ["--only", "transformers", "--only", "transformers (no logprobs)"]
    assert main(["rollout", "--trial", "--threads", "1", "--model", str(tiny.path), *only]) == 0
    tree = orjson.loads(capsys.readouterr().out)
    assert [one["peer"] for one in tree["comparisons"]] == ["transformers", "transformers (no logprobs)"]
    assert tree["sanity"]["lockstep"]["mean_difference"] == 0.0
    assert tree["sanity"]["transformers"]["mean_difference"] < 0.1
    assert tree["contestants"]["transformers"]["peak_gib"] > 0.1
    assert sorted(result.RESULTS.glob("*")) == before, "a trial writes nothing"
