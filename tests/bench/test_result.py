from __future__ import annotations

from dataclasses import replace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import result
from bench.result import Comparison, Line, Result, comparisons, read, record
from lockstep.errors import InputError, StorageError

COMPARISON = Comparison("rollouts", "peer", "tokens/s", 1000.0, 500.0, 2.0, 1.9, 2.1, 2.0)


def made(row: str = "rollout", found: tuple[Comparison, ...] = (COMPARISON,)) -> Result:
    return Result(row, {"rounds": 5}, {"lockstep": {"seconds": [1.0]}}, found, {"lockstep": {"tokens": 8}})


def test_a_result_reads_back(tmp_path):
    file = made().write(tmp_path / "results")
    assert file.name == "rollout.json" and file.read_bytes().endswith(b"}\n")
    tree = read(file)
    assert tree["comparisons"][0]["ratio"] == 2.0
    assert tree["machine"]["cores"] >= 1 and tree["lockstep"]["code"] and len(tree["date"]) == 10
    assert [child.name for child in file.parent.iterdir()] == ["rollout.json"], "nothing half-written stays"


def test_an_older_result_is_replaced_whole_or_stays(tmp_path, monkeypatch):
    file = made().write(tmp_path)
    before = file.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError):
        Result("rollout", {}, {}, (), {}).write(tmp_path)
    assert file.read_bytes() == before
    assert [child.name for child in tmp_path.iterdir()] == ["rollout.json"]


@pytest.mark.parametrize("text", ["", "nonsense", "[]", "{}", '{"schema": 0, "comparisons": []}', '{"schema": 1}'])
def test_what_is_no_result_is_refused(text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=r"result \(a.json\)"):
        read(tmp_path / "a.json")


def test_comparisons_are_round_by_round(standing):
    found = {"lockstep": standing("lockstep", 9.0, 1.0, 2.0, 1.0), "peer": standing("peer", 1.0, 2.0, 8.0, 3.0)}
    (one,) = comparisons(Line("rollouts", "tokens/s", 100), found, "lockstep", {"peer": 2.0})
    assert (one.ours, one.theirs) == (100.0, pytest.approx(100 / 3))
    assert (one.ratio, one.low, one.high) == (3.0, 2.0, 4.0)
    assert (one.what, one.peer, one.bar) == ("rollouts", "peer", 2.0)


@given(st.lists(st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)), min_size=1, max_size=7), st.floats(0, 1000))
def test_ratios_do_not_depend_on_the_unit(pairs, amount):
    from bench.contest import Standing
    from lockstep.adapters.engines.process import Program

    def of(name: str, seconds: list[float]) -> Standing:
        program = Program(name, result.RESULTS, result.RESULTS, {})
        return Standing(program, {}, tuple({"seconds": one} for one in (1.0, *seconds)), None)

    found = {"ours": of("ours", [a for a, _ in pairs]), "theirs": of("theirs", [b for _, b in pairs])}
    seconds, rate = (comparisons(Line("x", "u", n), found, "ours", {})[0] for n in (0.0, amount))
    assert seconds.ratio == rate.ratio and seconds.bar is None
    assert seconds.low <= seconds.ratio <= seconds.high


def test_seconds_are_reported_as_they_are(standing):
    found = {"lockstep": standing("lockstep", 1.0, 3.0), "peer": standing("peer", 1.0, 30.0)}
    (one,) = comparisons(Line("step", "s"), found, "lockstep", {})
    assert (one.ours, one.theirs, one.ratio) == (3.0, 30.0, 10.0)


def test_a_record_holds_every_round_and_no_place_of_this_machine(standing):
    found = record(standing("peer", 5.0, 1.0, 3.0, model="/a/place", gguf="/another", threads=2))
    assert found["warm_up_seconds"] == 5.0 and found["seconds"] == [1.0, 3.0] and found["median_seconds"] == 2.0
    assert found["settings"] == {"threads": 2} and found["peak_gib"] == 1.5
    one = standing("peer", 1.0, 1.0)
    preload = replace(one, program=replace(one.program, variables={"LD_PRELOAD": "/place/a:/b"}))
    assert record(preload)["variables"] == {"LD_PRELOAD": "a:b"}
    assert b"place" not in orjson.dumps(record(preload))
    assert b"place" not in orjson.dumps(found)
