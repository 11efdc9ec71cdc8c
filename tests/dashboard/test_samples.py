"""Sample rollouts: the telling ones, every token of them, and each difference framed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lockstep.core import Logprobs, Reward
from lockstep.dashboard.samples import MOST_TOKENS, differing, groups, pieces, samples
from lockstep.trace import RolloutRecord, RunDirectory

Decode = Callable[[Sequence[int]], str]
Records = Callable[..., list[RolloutRecord]]


def test_pieces_join_to_the_text(make_records: Records, decode: Decode) -> None:
    for record in make_records(1):
        assert "".join(piece.text for piece in pieces(record, decode)) == record.rollout.text


def test_a_character_of_several_tokens_stays_whole(make_records: Records) -> None:
    text = "né→😀x"
    record = _with(make_records(1)[0], np.frombuffer(text.encode(), np.uint8).astype(np.int32))
    found = [piece.text for piece in pieces(record, lambda ids: bytes(ids).decode(errors="replace"))]
    assert [part for part in found if part] == list(text)
    assert len(found) == len(text.encode()), "each token keeps its place"


def test_a_decoder_that_drops_the_first_space_is_followed_in_context(make_records: Records) -> None:
    words = ["▁a", "▁b", "c"]
    record = _with(make_records(1)[0], np.array([0, 1, 2], np.int32))
    found = pieces(record, lambda ids: "".join(words[i] for i in ids).replace("▁", " ").removeprefix(" "))
    assert [piece.text for piece in found] == ["a", " b", "c"]


def test_shades_follow_the_probability(make_records: Records, decode: Decode) -> None:
    values = np.log(np.array([0.95, 0.6, 0.3, 0.1, 0.01], np.float32))
    record = _with(make_records(1)[0], np.arange(1, 6, dtype=np.int32), values)
    found = pieces(record, decode)
    assert [piece.shade for piece in found] == [0, 1, 2, 3, 4]
    assert found[0].note == "token 1, logprob -0.0513, probability 0.950"


def test_one_bit_is_framed(make_records: Records, decode: Decode) -> None:
    record = make_records(1, broken=True)[5]
    framed = [piece.differs for piece in pieces(record, decode)]
    assert framed == [place == 1 for place in range(len(framed))]
    assert "; trainer " in pieces(record, decode)[1].note
    (group,) = differing(make_records(1, broken=True), decode)
    assert [one.id for one in group.completions] == [record.rollout.id] and group.total == 8
    assert group.completions[0].parity not in ("0.0", "")


def test_a_missing_trainer_value_differs_and_a_missing_score_does_not(make_records: Records, decode: Decode) -> None:
    record = make_records(1)[0]
    assert record.trainer_logprobs is not None
    short = replace(
        record, trainer_logprobs=Logprobs(record.trainer_logprobs.values[:-1], record.trainer_logprobs.contract)
    )
    assert [piece.differs for piece in pieces(short, decode)][-1]
    assert "missing" in pieces(short, decode)[-1].note
    assert groups([short], decode)[0].completions[0].parity.endswith("tokens")
    absent = replace(record, trainer_logprobs=None)
    assert not any(piece.differs for piece in pieces(absent, decode)) and differing([absent], decode) == []


def test_the_prompts_with_the_widest_rewards_come_first(make_records: Records, decode: Decode) -> None:
    records = make_records(1, prompts=4)
    tasks = list(dict.fromkeys(record.rollout.task_id for record in records))
    rewarded = [
        replace(record, reward=Reward(record.rollout.id, float(record.rollout.task_id == tasks[2] and place % 2)))
        for place, record in enumerate(records)
    ]
    found = groups(rewarded, decode)
    assert found[0].task == tasks[2] and len(found) == 2
    assert [one.reward for one in found[0].completions] == ["1.00", "1.00", "0.00", "0.00"]
    assert [one.good for one in found[0].completions] == [True, True, False, False]
    assert found[0].total == 8


def test_undecided_is_neither_good_nor_bad(make_records: Records, decode: Decode) -> None:
    record = replace(make_records(1)[0], reward=Reward("x", None), verdict=None)
    (one,) = groups([record], decode)[0].completions
    assert one.reward == "undecided" and one.good is None and one.verdict == ""


def test_long_completions_are_cut_and_say_so(make_records: Records, decode: Decode) -> None:
    record = _with(make_records(1)[0], np.ones(MOST_TOKENS + 7, np.int32))
    (one,) = groups([replace(record, prompt="p" * 5000)], decode)[0].completions
    assert len(one.pieces) == MOST_TOKENS and one.hidden == 7
    assert len(groups([replace(record, prompt="p" * 5000)], decode)[0].prompt) < 2100


def test_without_a_decoder_the_text_is_shown_whole(make_records: Records) -> None:
    record = make_records(1)[0]
    (one,) = groups([record], None)[0].completions
    assert one.text == record.rollout.text and {piece.text for piece in one.pieces} == {""}


def test_the_last_and_the_first_step_are_shown(
    tmp_path: Path, make_run: Callable[..., RunDirectory], decode: Decode
) -> None:
    assert [sample.title for sample in samples(make_run(tmp_path / "a", steps=5), decode)] == ["Step 5", "Step 1"]
    assert [sample.title for sample in samples(make_run(tmp_path / "b", steps=1), decode)] == ["Step 1"]
    assert samples(make_run(tmp_path / "c", steps=0, outcome=None), decode) == []


def _with(record: RolloutRecord, ids: np.ndarray, values: np.ndarray | None = None) -> RolloutRecord:
    """The record with other tokens, on which trainer and sampler agree."""
    logprobs = Logprobs(
        np.zeros(len(ids), np.float32) if values is None else values, record.rollout.sampler_logprobs.contract
    )
    rollout = replace(record.rollout, token_ids=ids, sampler_logprobs=logprobs)
    return replace(record, rollout=rollout, trainer_logprobs=logprobs)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_logprob_that_is_no_number_is_shown_as_the_rarest(
    make_records: Records, decode: Decode, value: float
) -> None:
    (piece,) = pieces(_with(make_records(1)[0], np.ones(1, np.int32), np.array([value], np.float32)), decode)
    assert piece.shade == 4 and str(value) in piece.note
