"""What columns allow: every answer has the reason that the counts give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.adapters.foreign.coverage import COLUMNS, Coverage
from lockstep.adapters.foreign.permission import KINDS, RECOMPUTED, Permission, permissions
from lockstep.core import SamplingParams, Span
from lockstep.parity.observation import Observation, Sample, Statement
from lockstep.parity.probes.objective import NAMES

IDS, NONE = np.array([3, 4], np.int32), np.empty(0, np.int32)
SERIES = np.array([-1.0, -2.0], np.float32)
PAIR = {"sampler": SERIES, "trainer": SERIES}


def of(*samples: dict[str, Any], notes: dict[str, str] | None = None, **said: Any) -> dict[str, Permission]:
    coverage = Coverage()
    rows = [Sample(**{"id": str(at), "prompt_ids": IDS, "token_ids": IDS, **s}) for at, s in enumerate(samples)]
    coverage.add(Observation(1, rows, **said))
    return permissions(coverage, notes or {})


def test_every_kind_has_an_answer_in_order():
    assert tuple(of({})) == KINDS
    assert {str(p) for p in of().values()} == {"no - there are no samples"}
    assert {str(p) for p in permissions(Coverage(), {}).values()} == {"no - there are no samples"}


def test_metrics_that_can_be_recomputed_are_those_of_the_probe():
    assert RECOMPUTED == NAMES


def test_texts_only():
    allows = of({"token_ids": NONE, "prompt_ids": NONE, "text": "x"})
    assert {p.answer for p in allows.values()} == {"no"}
    assert allows["structure"].why == "there are no token ids, only texts"
    assert allows["path"].why == "there are no token ids, sampler logprobs or trainer logprobs here"


def test_ids_only():
    allows = of({}, {"token_ids": NONE})
    assert str(allows["structure"]) == (
        "partly - token ids of 1 of 2 samples without logprobs: repetitions can be seen"
    )
    assert str(allows["mismatch"]) == "no - there are no sampler logprobs or trainer logprobs here"


def test_one_side_only():
    allows = of({"sampler": SERIES})
    assert str(allows["structure"]) == "yes - token ids of all 1 samples, and sampler logprobs"
    assert str(allows["mismatch"]) == (
        "given a reference - there are no trainer logprobs here: it has to stand in for the trainer"
    )
    assert allows["numerics"].why == "no trainer scored, so its own noise cannot be measured"
    assert str(of({"trainer": SERIES})["mismatch"]) == "no - there are no sampler logprobs here"


def test_sides_of_different_samples():
    assert str(of({"sampler": SERIES}, {"trainer": SERIES})["mismatch"]).startswith(
        "given a reference - no sample has both the sampler's and the trainer's logprobs: "
    )


def test_both_sides():
    allows = of(PAIR, PAIR)
    assert str(allows["mismatch"]) == "yes - both series of 2 samples, 4 tokens"
    assert {allows[kind].answer for kind in ("semantics", "weights", "cache", "path", "numerics")} == {
        "given a reference"
    }
    assert str(of(PAIR, {**PAIR, "trainer": SERIES[:1]})["mismatch"]) == "yes - both series of 1 of 2 samples, 2 tokens"


def test_pairs_that_cannot_be_subtracted():
    allows = of({**PAIR, "sampler": SERIES[:1]})
    why = "no - no two series have the length of their tokens and finite numbers only"
    assert str(allows["mismatch"]) == str(allows["cache"]) == why


@pytest.mark.parametrize(
    ("kind", "column", "value", "without", "with_it"),
    [
        (
            "semantics",
            "params",
            SamplingParams(),
            "temperature and truncation are not said",
            "parameters of sampling are",
        ),
        ("weights", "versions", IDS, "no token says which weights", "the version that drew each token is said"),
        ("cache", "num_cached", 0, "no sample says what came from", "what came from the prefix cache is said"),
        (
            "cache",
            "spans",
            (Span(0, 1, 2),),
            "no sample says what came from",
            "what came from the prefix cache is said",
        ),
        ("path", "path", IDS, "no token says its way through the engine", "the way through the engine is said"),
    ],
)
def test_columns_that_sharpen_an_answer(kind: str, column: str, value: object, without: str, with_it: str):
    assert without in of(PAIR)[kind].why
    assert with_it in of({**PAIR, column: value})[kind].why


def test_the_trainer_against_itself():
    assert of({**PAIR, "again": SERIES})["numerics"].answer == "partly"
    assert of({"again": SERIES, "sampler": SERIES})["numerics"].answer == "given a reference"


def test_statements():
    assert str(of({})["statements"]) == "no - neither side says its settings or the label of its weights here"
    engine, trainer = Statement("engine", {"top_p": 1.0}, 3), Statement("trainer", {}, 3)
    assert str(of({}, engine=engine)["statements"]) == "partly - the engine says number, top_p"
    assert str(of({}, engine=engine, trainer=trainer)["statements"]) == (
        "yes - the engine says number, top_p; the trainer says number"
    )


@pytest.mark.parametrize(
    ("sample", "metrics", "answer", "why"),
    [
        (PAIR, {}, "no", "no metric, sequence weight"),
        (PAIR, {"kl_new_old": 1.0, "reward": 1.0}, "yes", "metrics (kl_new_old)"),
        (PAIR, {"reward": 1.0}, "partly", "metrics (reward) only: no token gives them again"),
        ({}, {"kl_new_old": 1.0}, "partly", "metrics (kl_new_old) only: there are no sampler logprobs or trainer"),
        ({**PAIR, "ratio": 1.0}, {}, "yes", "weights of sequences"),
        ({**PAIR, "reference": SERIES}, {"reward": 1.0}, "yes", "metrics (reward) and the reference policy's logprobs"),
        (
            {"sampler": SERIES, "reference": SERIES},
            {},
            "partly",
            "the reference policy's logprobs only: there are no tr",
        ),
    ],
)
def test_objective(sample: dict, metrics: dict, answer: str, why: str):
    permission = of(sample, metrics=metrics)["objective"]
    assert permission.answer == answer
    assert permission.why.startswith(why)


def test_a_formats_note_is_added():
    assert str(of(PAIR, notes={"mismatch": "mind the lag"})["mismatch"]).endswith("2 tokens; mind the lag")
    assert of(PAIR, notes={"mismatch": "mind the lag"})["cache"] == of(PAIR)["cache"]


@given(data=st.data())
def test_more_columns_never_take_a_permission_away(data: st.DataObject):
    rank = {"no": 0, "given a reference": 1, "partly": 2, "yes": 3}
    series = ("sampler", "trainer", "again", "reference")
    some = {name: SERIES for name in series if data.draw(st.booleans())}
    more = {**some, **{name: SERIES for name in series if data.draw(st.booleans())}}
    fewer, larger = of(some), of(more)
    assert all(rank[larger[kind].answer] >= rank[fewer[kind].answer] for kind in KINDS)
    assert set(series) < set(COLUMNS)
