from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.contest import Spread, hold, log_of, ratios
from lockstep.adapters.engines.process import WorkerFailed

COUNTING = """
def start(log, pace, **_):
    def work(number):
        with open(log, "a") as file:
            file.write(f"{number} {pace}\\n")
        return {"seconds": pace * (number + 1), "number": number}
    return work, {"pace": str(pace)}
serve(start)
"""


def quiet(_: str) -> None:
    pass


def test_order_is_reversed_every_other_round_and_the_first_is_not_counted(scripted, tmp_path):
    log = tmp_path / "order"
    entrants = [scripted(COUNTING, name, log=str(log), pace=pace) for name, pace in (("a", 1), ("b", 3))]
    said = []
    found = hold(entrants, lambda number: {"number": number}, 3, tmp_path / "logs", said.append)
    assert log.read_text().split("\n")[:-1] == ["0 1", "0 3", "1 3", "1 1", "2 1", "2 3", "3 3", "3 1"]
    assert found["a"].seconds == [2.0, 3.0, 4.0]
    assert [answer["number"] for answer in found["b"].answers] == [0, 1, 2, 3]
    assert ratios(found["b"], found["a"]) == [3.0, 3.0, 3.0]
    assert list(found) == ["a", "b"] and found["b"].versions == {"pace": "3"}
    assert sum("warm-up" in line for line in said) == 2


@pytest.mark.parametrize("seconds", ["'soon'", "0", "float('nan')", "None"])
def test_an_answer_without_its_time_is_refused(seconds, scripted, tmp_path):
    program = scripted(f"serve(lambda **_: (lambda **ask: {{'seconds': {seconds}}}, {{'a': 'b'}}))")
    with pytest.raises(WorkerFailed, match="how long it took"):
        hold([program], lambda _: {}, 1, tmp_path, quiet)


def test_one_that_dies_ends_the_contest(scripted, tmp_path):
    good = scripted("serve(lambda **_: (lambda **ask: {'seconds': 1}, {'pid': str(os.getpid())}))", "good")
    bad = scripted("serve(lambda **_: (lambda **ask: 1 / ask['number'], {'a': 'b'}))", "bad")
    with pytest.raises(WorkerFailed, match="bad"):
        hold([good, bad], lambda number: {"number": number}, 1, tmp_path, quiet)


@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=9))
def test_spread(values):
    found = Spread.of(values)
    assert found.low <= found.median <= found.high
    assert found.median == statistics.median(values)
    assert found.low in values and found.high in values


def test_logs_have_plain_names(scripted, tmp_path):
    assert log_of(tmp_path, scripted("", "vLLM (CPU)")).name == "vLLM--CPU.log"
