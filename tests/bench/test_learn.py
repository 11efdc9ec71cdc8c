from __future__ import annotations

from contextlib import ExitStack

import pytest

from bench import recipe
from bench.learn import Course, compare, race
from lockstep.adapters.engines.process import Worker
from lockstep.errors import StageError

TRAINER = """
def start(pace, gain, **_):
    state = {"steps": 0}
    def work(do, path=None):
        if do == "save":
            open(path, "w").write(str(gain * state["steps"]))
            return {"saved": path}
        state["steps"] += 1
        return {"seconds": pace, "reward": 0.5}
    return work, {"a": "b"}
serve(start)
"""
EXAMINER = """
def work(path):
    return {"seconds": 1.0, "passed": float(open(path).read()), "total": 10}
serve(lambda **_: (work, {"examiner": "1"}))
"""


def run(scripted, tmp_path, steps: int, every: int, **gains: float) -> dict[str, Course]:
    with ExitStack() as stack:
        running = []
        for name, gain in gains.items():
            running.append(Worker(scripted(TRAINER, name, pace=2.0, gain=gain), tmp_path / f"{name}.log"))
        running.append(Worker(scripted(EXAMINER, "examiner"), tmp_path / "examiner.log"))
        for one in running:
            stack.enter_context(one).start()
            one.pause()
        return race(running[:-1], running[-1], steps, every)


def test_each_trains_until_it_reaches_the_goal(scripted, tmp_path):
    found = run(scripted, tmp_path, 12, 3, quick=2.0, slow=1.0, never=0.1)
    assert {name: (course.reached, course.total) for name, course in found.items()} == {
        "quick": (True, 6.0),
        "slow": (True, 12.0),
        "never": (False, 24.0),
    }
    assert found["slow"].accuracy == {3: 0.3, 6: 0.6}
    assert list(found["never"].accuracy) == [3, 6, 9, 12]
    assert found["quick"].rewards == [0.5, 0.5, 0.5]


def course(total: float, *, reached: bool) -> Course:
    return Course([total], [0.5], {5: 0.7 if reached else 0.5})


def test_means_over_seeds_and_the_range_of_their_ratios():
    races = [
        {"lockstep": course(10, reached=True), recipe.TRL: course(100, reached=True)},
        {"lockstep": course(20, reached=True), recipe.TRL: course(500, reached=True)},
    ]
    found = compare(races, recipe.TRL)
    assert (found.ours, found.theirs, found.ratio) == (15.0, 300.0, 20.0)
    assert (found.low, found.high, found.bar) == (10.0, 25.0, 10.0)
    assert "2 seeds" in found.what


def test_a_peer_that_does_not_get_there_gives_a_bound():
    races = [{"lockstep": course(10, reached=True), recipe.TRL: course(400, reached=False)}]
    found = compare(races, recipe.TRL)
    assert found.theirs is None and found.ratio == 40.0


def test_there_is_no_result_if_ours_does_not_get_there():
    races = [{"lockstep": course(10, reached=False), recipe.TRL: course(400, reached=True)}]
    with pytest.raises(StageError, match="ours reaches the goal"):
        compare(races, recipe.TRL)
