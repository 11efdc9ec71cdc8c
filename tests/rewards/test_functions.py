"""Reward functions of the user's: recognised, called, and never trusted."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lockstep.core import Contract, Logprobs, Provenance, Rollout, SamplingParams, Task, Verdict
from lockstep.errors import InputError, Interrupted
from lockstep.rewards import FunctionReward, Grade, load_reward
from lockstep.rewards.advantages import LARGEST
from lockstep.rewards.arguments import Signature

CHAT = ({"role": "user", "content": "5 + 7?"},)
TASKS = [
    Task("a", "5 + 7?", "12", {"level": 1, "tags": ["sum"]}),
    Task("b", CHAT, "12", {"level": 2}),
    Task(
        "c", "why?", None, {"data_source": "open", "reward_model": {"ground_truth": ["x"]}, "extra_info": {"index": 3}}
    ),
]


def rollout(text: str, task: Task = TASKS[0], name: str = "r") -> Rollout:
    ids = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
    contract = Contract("processed", 1.0, "full", "float32", (0,))
    logprobs = Logprobs(np.full(len(ids), -1.0, np.float32), contract)
    origin = Provenance(np.zeros(len(ids), np.int32), np.zeros(len(ids), np.uint8), np.zeros(len(ids), bool))
    return Rollout(name, task.id, np.array([1], np.int32), ids, text, "stop", SamplingParams(), logprobs, origin)


def grade(function: Callable[..., Any], *texts: str, task: Task = TASKS[0]) -> list[Grade]:
    rollouts = [rollout(text, task, f"r{i}") for i, text in enumerate(texts)]
    grades = FunctionReward.of(function, "own.reward").grade([task] * len(texts), rollouts)
    assert [g.reward.rollout_id for g in grades] == [r.id for r in rollouts]
    return grades


def values(grades: list[Grade]) -> list[float | None]:
    return [g.reward.value for g in grades]


def errors(grades: list[Grade]) -> list[str | None]:
    return [g.verdict.code if g.verdict and g.verdict.status == "error" else None for g in grades]


# -- recognised by parameter names


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda prompts, completions, completion_ids=None, **columns: [], "trl"),
        (lambda completions, answer, **kwargs: [], "trl"),
        (lambda completions: [], "trl"),
        (lambda completions, task: [], "trl"),
        (lambda data_source, solution_str, ground_truth, extra_info=None: 0, "verl"),
        (lambda solution_str, ground_truth, **kwargs: 0, "verl"),
        (lambda task, rollout: 0, "plain"),
        (lambda *, rollout, task, scale=2: 0, "plain"),
    ],
)
def test_shapes(function: Callable[..., Any], shape: str):
    assert Signature.of(function, "f").shape == shape


@pytest.mark.parametrize(
    "function",
    [
        lambda: 0,
        lambda text, answer: 0,
        lambda **kwargs: 0,
        lambda *args: 0,
        lambda task: 0,
        lambda solution_str: 0,
        lambda completions, /: 0,
        lambda extra, /, completions: 0,
        max,
        dict,
    ],
)
def test_parameters_of_no_known_shape(function: Callable[..., Any]):
    with pytest.raises(InputError, match=r"reward function \(f\): a function is recognised by the names .* - got \("):
        FunctionReward.of(function, "f")


def test_from_a_dotted_path(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(math, "own", lambda task, rollout: 0.25, raising=False)
    reward = load_reward("math.own", check=None)  # type: ignore[arg-type]
    assert reward.grade(TASKS[:1], [rollout("x")])[0].reward.value == 0.25


# -- what they are called with


def test_trl_gets_lists_of_everything_once():
    calls = []

    def reward(prompts, completions, completion_ids=None, **columns):
        calls.append((prompts, completions, completion_ids, columns))
        return [1.0, 2.0, 3.0]

    grades = FunctionReward.of(reward, "f").grade(
        TASKS, [rollout("x", TASKS[0]), rollout("yz", TASKS[1]), rollout("", TASKS[2])]
    )
    ((prompts, completions, ids, columns),) = calls
    assert prompts == ["5 + 7?", [{"role": "user", "content": "5 + 7?"}], "why?"]
    assert completions == ["x", [{"role": "assistant", "content": "yz"}], ""]
    assert ids == [[120], [121, 122], []]
    assert columns["answer"] == ["12", "12", None]
    assert columns["level"] == [1, 2, None]
    assert columns["tags"] == [["sum"], None, None]
    assert columns["extra_info"] == [None, None, {"index": 3}]
    assert values(grades) == [1.0, 2.0, 3.0]
    assert [dict(g.reward.parts) for g in grades] == [{"reward": 1.0}, {"reward": 2.0}, {"reward": 3.0}]
    assert [g.verdict for g in grades] == [None] * 3


def test_trl_functions_get_only_what_they_name():
    assert values(
        grade(lambda completions, level: [n + len(t) for t, n in zip(completions, level, strict=True)], "xyz")
    ) == [4.0]


def test_a_column_in_the_metadata_wins_over_the_answer():
    task = Task("t", "p", "72", {"answer": "6 * 12 = #### 72"})
    seen = []
    grade(lambda completions, answer: seen.extend(answer) or [0], "x", task=task)
    assert seen == ["6 * 12 = #### 72"]


def test_verl_gets_its_four():
    seen: list[Any] = []

    def compute_score(data_source, solution_str, ground_truth, extra_info=None):
        seen.append((data_source, solution_str, ground_truth, extra_info))
        return {"score": 0.5, "acc": True, "pred": "12", "bad": math.nan}

    (g,) = grade(compute_score, "x", task=TASKS[2])
    grade(compute_score, "y", task=TASKS[0])
    assert seen == [("open", "x", ["x"], {"index": 3}), (None, "y", "12", None)]
    assert (g.reward.value, dict(g.reward.parts)) == (0.5, {"compute_score": 0.5, "compute_score/acc": 1.0})


def test_plain_gets_our_nouns():
    grades = grade(lambda task, rollout: float(rollout.text == task.answer), "12", "13")
    assert values(grades) == [1.0, 0.0]


def test_plain_may_give_verdicts():
    def judge(task, rollout):
        return Verdict({"y": "pass", "n": "fail"}.get(rollout.text, "abstain"), "c", "judge@3", witness="w")  # type: ignore[arg-type]

    grades = grade(judge, "y", "n", "?")
    assert values(grades) == [1.0, 0.0, None]
    assert [g.verdict and (g.verdict.check, g.verdict.witness) for g in grades] == [("judge@3", "w")] * 3


def test_what_a_function_writes_into_reaches_nobody():
    def reward(completions, tags, extra=None, **columns):
        tags[0].append("spoilt")
        columns["answer"][0] = "spoilt"
        return [0.0]

    def compute_score(solution_str, ground_truth, extra_info=None):
        return extra_info.pop("index")

    def plain(task, rollout):
        task.metadata["level"] = 99
        return 0.0

    for function, task in ((reward, TASKS[0]), (compute_score, TASKS[2]), (plain, TASKS[1])):
        first = grade(function, "x", task=task)
        assert values(first) == values(grade(function, "x", task=task)) != [None]
    assert TASKS[0].metadata == {"level": 1, "tags": ["sum"]}
    assert TASKS[2].metadata["extra_info"] == {"index": 3}
    assert TASKS[1].metadata["level"] == 2


@pytest.mark.parametrize("function", [lambda completions, trainer_state: [0], lambda task, rollout, budget: 0])
def test_a_parameter_that_nothing_fills(function: Callable[..., Any]):
    with pytest.raises(
        InputError, match=r"own.reward\): every parameter without .* got (trainer_state|budget), which no task"
    ):
        grade(function, "x")


def test_nothing_to_grade():
    assert grade(lambda completions: 1 / 0) == []


# -- what they return


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (1, 1.0),
        (0.25, 0.25),
        (True, 1.0),
        (np.float32(0.5), 0.5),
        (np.bool_(False), 0.0),
        (np.int64(-3), -3.0),
        (Fraction(1, 4), 0.25),
        (LARGEST, LARGEST),
        (None, None),
    ],
)
def test_numbers(result: Any, expected: float | None):
    for function in (
        lambda completions: [result],
        lambda solution_str, ground_truth: result,
        lambda task, rollout: result,
    ):
        grades = grade(function, "x")
        assert values(grades) == [expected]
        assert type(grades[0].reward.value) in (float, type(None))
        assert errors(grades) == [None]


@pytest.mark.parametrize(
    ("result", "got"),
    [
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (2 * LARGEST, "2e+30"),
        (10**400, "int"),
        pytest.param(10**5000, "int", id="long"),
        ("1.0", "'1.0'"),
        (1j, "complex"),
        ([1.0], "list"),
        ({"score": 1.0}, "dict"),
        (object(), "object"),
        (torch.tensor(1.0), "Tensor"),
    ],
)
def test_what_is_no_reward_is_data(result: Any, got: str):
    for function in (lambda completions: [result, 1.0], lambda task, rollout: result if rollout.text == "x" else 1.0):
        grades = grade(function, "x", "y")
        assert values(grades) == [None, 1.0]
        assert errors(grades) == ["not_a_number", None]
        assert "error/not_a_number" in grades[0].reward.parts
        assert grades[0].verdict is not None
        assert f"reward function (own.reward): a reward is a finite number - got {got}, " in grades[0].verdict.witness


@pytest.mark.parametrize("result", [{}, {"score": None}, {"score": math.nan}, {"acc": 1.0}])
def test_a_verl_mapping_without_a_score(result: Any):
    assert errors(grade(lambda solution_str, ground_truth: result, "x")) == ["not_a_number"]


@pytest.mark.parametrize("result", [[1.0, 0.0], (1.0, 0.0), np.array([1.0, 0.0]), torch.tensor([1.0, 0.0])])
def test_trl_results_may_be_any_list(result: Any):
    assert values(grade(lambda completions: result, "x", "y")) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("result", "got"),
    [
        ([1.0], "1 values"),
        ([], "0 values"),
        (1.0, "float"),
        (None, "NoneType"),
        ("ab", "str"),
        (np.ones(()), "float"),
    ],
)
def test_a_wrong_count_cannot_be_aligned(result: Any, got: str):
    grades = grade(lambda completions: result, "x", "y")
    assert (values(grades), errors(grades)) == ([None, None], ["wrong_count"] * 2)
    assert grades[0].verdict is not None
    assert f"one reward for each completion - got {got}, expected a list of 2" in grades[0].verdict.witness


# -- what they raise


def fragile(task: Task, rollout: Rollout) -> float:
    """One bad text among good ones."""
    return 1 / len(rollout.text)


def fragile_batch(completions, **columns):
    return [1 / len(text) for text in completions]


def fragile_score(solution_str, ground_truth):
    return 1 / len(solution_str)


async def fragile_later(task, rollout):
    await asyncio.sleep(0)
    return 1 / len(rollout.text)


async def fragile_batch_later(completions):
    await asyncio.sleep(0)
    return [1 / len(text) for text in completions]


@pytest.mark.parametrize("function", [fragile, fragile_batch, fragile_score, fragile_later, fragile_batch_later])
def test_one_bad_text_costs_one_reward(function: Callable[..., Any]):
    grades = grade(function, "xx", "", "xxxx")
    assert values(grades) == [0.5, None, 0.25]
    assert errors(grades) == [None, "ZeroDivisionError", None]
    assert dict(grades[1].reward.parts) == {function.__name__: None, "error/ZeroDivisionError": None}
    assert grades[1].verdict is not None
    assert grades[1].verdict.witness == "reward function (own.reward): raised ZeroDivisionError - division by zero"


def test_a_trl_function_is_asked_again_only_when_it_raised():
    calls: list[int] = []

    def reward(completions):
        calls.append(len(completions))
        return [1 / len(text) for text in completions]

    grade(reward, "x", "y")
    assert calls == [2]
    grade(reward, "x", "")
    assert calls == [2, 2, 1, 1]
    grade(reward, "")
    assert calls == [2, 2, 1, 1, 1]


def test_alone_or_together_the_columns_are_the_same():
    def reward(completions, tags, **columns):
        return [len(tag) / len(text) for tag, text in zip(tags, completions, strict=True)]

    grades = FunctionReward.of(reward, "f").grade(TASKS[:2], [rollout("x", TASKS[0]), rollout("y", TASKS[1])])
    assert (values(grades), errors(grades)) == ([1.0, None], [None, "TypeError"])


@pytest.mark.parametrize(
    "raised", [MemoryError("big"), RecursionError(), InputError("bad"), BaseExceptionGroup("g", [ValueError()])]
)
def test_whatever_is_raised_is_data(raised: Exception):
    def reward(task, rollout):
        raise raised

    grades = grade(reward, "x")
    assert (values(grades), errors(grades)) == ([None], [type(raised).__name__])


@pytest.mark.parametrize("stop", [Interrupted("stop"), KeyboardInterrupt()])
def test_a_stop_is_a_stop(stop: BaseException):
    def now(task, rollout):
        raise stop

    async def later(task, rollout):
        await asyncio.sleep(0)
        raise stop

    for function in (now, later):
        with pytest.raises(type(stop)):
            grade(function, "x", "y")


# -- async


async def later(task, rollout):
    await asyncio.sleep(0)
    return float(len(rollout.text))


class Remote:
    async def __call__(self, completions, **columns):
        await asyncio.sleep(0)
        return [float(len(text)) for text in completions]


@pytest.mark.parametrize(
    "function", [later, Remote(), functools.partial(later), lambda task, rollout: later(task=task, rollout=rollout)]
)
def test_async_functions(function: Callable[..., Any]):
    assert values(grade(function, "x", "xx", "")) == [1.0, 2.0, 0.0]


def test_async_calls_run_together_and_keep_their_order():
    started: list[str] = []

    async def reward(task, rollout):
        started.append(rollout.text)
        while len(started) < 3:  # would never end one after another
            await asyncio.sleep(0)
        return float(rollout.text)

    assert values(grade(reward, "3", "1", "2")) == [3.0, 1.0, 2.0]


def test_inside_a_running_loop():
    async def notebook():
        return values(grade(later, "xx"))

    assert asyncio.run(notebook()) == [2.0]


def test_a_function_that_cancels_itself_is_data():
    async def reward(task, rollout):
        if rollout.text == "x":
            raise asyncio.CancelledError
        return 1.0

    grades = grade(reward, "x", "y")
    assert (values(grades), errors(grades)) == ([None, 1.0], ["CancelledError", None])


def test_a_function_with_a_loop_of_its_own():
    assert values(grade(lambda task, rollout: asyncio.run(later(task, rollout)), "xx")) == [2.0]


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(object()) | st.complex_numbers(),
    lambda v: st.lists(v) | st.tuples(v) | st.dictionaries(st.text() | st.just("score"), v),
)


@given(anything, st.integers(1, 3))
def test_whatever_comes_back_is_a_grade(result: Any, count: int):
    for function in (
        lambda completions: result,
        lambda completions: [result] * len(completions),
        lambda solution_str, ground_truth: result,
        lambda task, rollout: result,
    ):
        for g in grade(function, *["x"] * count):
            assert g.reward.value is None or (type(g.reward.value) is float and abs(g.reward.value) <= LARGEST)
            if g.reward.value is None:
                assert g.verdict is not None
                assert g.verdict.status in ("abstain", "error")
