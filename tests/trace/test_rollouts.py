"""Rollouts survive the disk bit for bit, whatever their floats and texts are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path as File
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.core import Contract, Logprobs, Provenance, Reward, Rollout, SamplingParams, Span, Support, Verdict
from lockstep.errors import InputError, StorageError
from lockstep.trace import rollouts
from lockstep.trace.rollouts import RolloutRecord

FULL = Contract("processed", 1.0, "full", "float32", (0,))
Make = Callable[..., RolloutRecord]


def bits(value: Any) -> Any:
    """A value that two things share exactly when they are the same, NaNs and signed zeros included."""
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape, value.tobytes())
    if is_dataclass(value):
        return (type(value).__name__, *(bits(getattr(value, f.name)) for f in fields(value)))
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, float):
        return np.float64(value).tobytes()
    return value


texts = st.text(st.characters(codec="utf-8"), max_size=12)
numbers = st.floats(allow_nan=True, allow_infinity=True)
bounded = st.floats(0, 1, exclude_min=True)
contracts = st.builds(
    Contract,
    mode=st.sampled_from(["raw", "processed"]),
    temperature=bounded,
    support=texts,
    head_dtype=st.sampled_from(["float32", "model"]),
    weight_versions=st.lists(st.integers(0, 2**40), max_size=3).map(tuple),
    adjustments=texts,
)
ids = st.integers(0, 2**31 - 1)
params = st.builds(
    SamplingParams,
    temperature=st.floats(0, 4),
    top_k=st.integers(0, 2**40),
    top_p=bounded,
    min_p=st.floats(0, 1),
    max_tokens=st.integers(1, 2**40),
    n=st.integers(1, 64),
    seed=st.integers(0, 2**64 - 1),
    stop=st.lists(texts, max_size=2).map(tuple),
    stop_token_ids=st.lists(st.integers(0, 2**31), max_size=2).map(tuple),
    ignore_eos=st.booleans(),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    repetition_penalty=st.floats(0, 2, exclude_min=True),
    logit_bias=st.dictionaries(ids, st.floats(-100, 100), max_size=3).map(lambda bias: tuple(sorted(bias.items()))),
    bad_words=st.lists(st.lists(ids, min_size=1, max_size=3).map(tuple), max_size=2).map(tuple),
    prompt_logprobs=st.booleans(),
)
spans = st.lists(st.builds(Span, start=ids, end=ids, version=ids), max_size=3).map(tuple)
verdicts = st.builds(
    Verdict,
    status=st.sampled_from(["pass", "fail", "abstain", "error"]),
    code=texts,
    check=texts,
    witness=texts,
    span=st.none() | st.tuples(st.integers(0, 99), st.integers(0, 99)),
    seconds=numbers,
)


def array(kind: type[np.generic], count: int) -> st.SearchStrategy[np.ndarray]:
    """Any bits at all, so that NaN payloads and negative zeros occur."""
    size = np.dtype(kind).itemsize * count
    return st.binary(min_size=size, max_size=size).map(lambda raw: np.frombuffer(raw, kind))


@st.composite
def records(draw: st.DrawFn) -> RolloutRecord:
    count = draw(st.integers(0, 6))
    kept = draw(st.none() | st.lists(st.integers(0, 4), min_size=count, max_size=count))
    support = None
    if kept is not None:
        offsets = np.concatenate([[0], np.cumsum(kept, dtype=np.int64)]).astype(np.int64)
        support = Support(draw(array(np.int32, int(offsets[-1]))), offsets)
    cached = np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)), bool)
    identity = draw(texts)
    rollout = Rollout(
        id=identity,
        task_id=draw(texts),
        prompt_ids=draw(array(np.int32, draw(st.integers(0, 4)))),
        token_ids=draw(array(np.int32, count)),
        text=draw(texts),
        finish_reason=draw(st.sampled_from(["stop", "length", "abort"])),
        params=draw(params),
        sampler_logprobs=Logprobs(draw(array(np.float32, count)), draw(contracts)),
        provenance=Provenance(draw(array(np.int32, count)), draw(array(np.uint8, count)), cached, draw(spans)),
        support=support,
        prompt_logprobs=draw(st.none() | st.builds(Logprobs, array(np.float32, 3) | array(np.float32, 0), contracts)),
    )
    value = draw(st.none() | numbers)
    parts = st.dictionaries(texts, st.none() | numbers, max_size=3)
    return RolloutRecord(
        step=draw(st.integers(0, 2**40)),
        rollout=rollout,
        prompt=draw(texts),
        reward=draw(st.none() | st.builds(Reward, st.just(identity), st.just(value), parts)),
        advantage=draw(st.none() | numbers),
        trainer_logprobs=draw(st.none() | st.builds(Logprobs, array(np.float32, count), contracts)),
        verdict=draw(st.none() | verdicts),
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(records(), max_size=4))
def test_what_is_read_is_what_was_written_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, written: list[RolloutRecord]
) -> None:
    file = tmp_path_factory.mktemp("rollouts") / "step_000001.parquet"
    rollouts.write(file, written)
    assert bits_of(rollouts.read(file)) == bits_of(written)


def bits_of(found: list[RolloutRecord]) -> list[Any]:
    return [bits(record) for record in found]


def test_nans_of_unlike_bits_and_signed_zeros_stay_apart(tmp_path: File, make_record: Make) -> None:
    odd = np.array([0x7FC00001, 0x7FC00002, 0xFFC00001, 0x80000000, 0x00000000, 0x00000001], np.uint32)
    record = make_record(6)
    record = replace(record, rollout=replace(record.rollout, sampler_logprobs=Logprobs(odd.view(np.float32), FULL)))
    rollouts.write(tmp_path / "r.parquet", [record] * 50)
    for back in rollouts.read(tmp_path / "r.parquet"):
        assert back.rollout.sampler_logprobs.values.view(np.uint32).tolist() == odd.tolist()


def test_undecided_is_not_zero(tmp_path: File, make_record: Make) -> None:
    rollouts.write(
        tmp_path / "r.parquet", [make_record(reward=Reward("add-3#0", None, {"check": None})), make_record()]
    )
    undecided, untouched = rollouts.read(tmp_path / "r.parquet")
    assert undecided.reward == Reward("add-3#0", None, {"check": None})
    assert untouched.reward is None and untouched.advantage is None and untouched.trainer_logprobs is None


def test_a_logprob_of_another_dtype_is_not_rounded_in_silence(tmp_path: File, make_record: Make) -> None:
    record = make_record()
    wide = Logprobs(np.array([-0.1, -0.2, -0.3], np.float64), FULL)
    record = replace(record, rollout=replace(record.rollout, sampler_logprobs=wide))
    with pytest.raises(AssertionError, match="sampler_logprobs must be float32, got float64"):
        rollouts.write(tmp_path / "r.parquet", [record])
    assert list(tmp_path.iterdir()) == []


def test_text_that_is_not_unicode_does_not_lose_the_step(tmp_path: File, make_record: Make) -> None:
    rollouts.write(tmp_path / "r.parquet", [make_record(prompt="a\ud800b")])
    assert rollouts.read(tmp_path / "r.parquet")[0].prompt == "a?b"


def test_any_parquet_tool_can_ask_for_rewards_by_name(tmp_path: File, make_record: Make) -> None:
    rollouts.write(
        tmp_path / "r.parquet", [make_record(reward=Reward("add-3#0", 0.5, {"check": 0.5}), advantage=-1.25)]
    )
    row = pq.read_table(tmp_path / "r.parquet", columns=["step", "completion", "reward", "advantage"]).to_pylist()
    assert row == [{"step": 1, "completion": "4", "reward": 0.5, "advantage": -1.25}]


@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "text", "foreign", "newer"])
def test_another_file_is_refused_with_what_to_do(tmp_path: File, make_record: Make, damage: str) -> None:
    file = tmp_path / "r.parquet"
    rollouts.write(file, [make_record()])
    whole = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage in ("cut", "empty", "text"):
        file.write_bytes({"cut": whole[:-20], "empty": b"", "text": b"{}"}[damage])
    elif damage == "foreign":
        pq.write_table(pa.table({"a": [1]}), file)
    else:
        pq.write_table(pq.read_table(file).replace_schema_metadata({b"lockstep.rollouts": b"3"}), file)
    with pytest.raises(
        InputError, match=r"rollouts \(.*r\.parquet\): must be a rollout file - got .*, expected Parquet"
    ):
        rollouts.read(file)


def test_a_directory_that_cannot_be_made_is_a_storage_error(tmp_path: File, make_record: Make) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="Give a directory, not a file"):
        rollouts.write(tmp_path / "file" / "r.parquet", [make_record()])


VERSION_1 = File(__file__).with_name("rollouts_version_1.parquet")  # written by the last code of that version


def test_a_file_of_version_1_is_read_as_it_was_written() -> None:
    decided, untouched = rollouts.read(VERSION_1)
    params = SamplingParams(
        temperature=0.7, top_k=2, max_tokens=8, n=2, seed=7, stop=("x",), stop_token_ids=(2,)
    )  # fmt: skip
    contract = Contract("processed", 0.7, "top_k=2,top_p=1.0,min_p=0.0", "float32", (3,))
    values = np.array([-0.5, -1.25, -0.0], np.float32)
    rollout = Rollout(
        id="add-3#0/0",
        task_id="add-3",
        prompt_ids=np.arange(5, dtype=np.int32),
        token_ids=np.array([100, 101, 2], np.int32),
        text="4",
        finish_reason="stop",
        params=params,
        sampler_logprobs=Logprobs(values, contract),
        provenance=Provenance(np.full(3, 3, np.int32), np.array([0, 2, 2], np.uint8), np.zeros(3, bool)),
        support=Support(np.array([100, 101, 101, 7, 2], np.int32), np.array([0, 2, 4, 5])),
    )
    verdict = Verdict("pass", "ok", "exact@1", "saw 4", (0, 1), 0.5)
    reward = Reward(rollout.id, 1.0, {"exact": 1.0})
    expected = RolloutRecord(4, rollout, "What is 2 + 2?", reward, 0.5, Logprobs(values, contract), verdict)
    assert bits(decided) == bits(expected)
    assert bits(untouched) == bits(RolloutRecord(4, rollout, "What is 2 + 2?"))


def test_what_is_read_from_version_1_can_be_written_as_the_present_one(tmp_path: File) -> None:
    old = rollouts.read(VERSION_1)
    rollouts.write(tmp_path / "r.parquet", old)
    assert bits_of(rollouts.read(tmp_path / "r.parquet")) == bits_of(old)
    assert pq.read_schema(tmp_path / "r.parquet").metadata[b"lockstep.rollouts"] == b"2"


@pytest.mark.parametrize(("columns", "stated"), [("1", "2"), ("2", "1")])
def test_columns_of_one_version_under_the_name_of_another_are_refused(
    tmp_path: File, make_record: Make, columns: str, stated: str
) -> None:
    file = tmp_path / "r.parquet"
    rollouts.write(file, [make_record()])
    table = pq.read_table(VERSION_1 if columns == "1" else file)
    pq.write_table(table.replace_schema_metadata({b"lockstep.rollouts": stated.encode()}), file)
    with pytest.raises(InputError, match=f"got schema {stated}"):
        rollouts.read(file)


def test_what_says_nothing_costs_next_to_nothing_a_token(tmp_path: File, make_record: Make) -> None:
    """One group of 8: the prompt's logprobs are the same for all, and the spans are one each."""
    rng = np.random.default_rng(0)
    scores = Logprobs(-rng.random(511).astype(np.float32), FULL)

    def size(full: bool) -> int:
        made = []
        for _ in range(8):
            record = make_record(256)
            old = record.rollout.provenance
            rollout = replace(record.rollout, provenance=replace(old, spans=(Span(0, 767, 0),)), prompt_logprobs=scores)
            made.append(replace(record, rollout=rollout) if full else record)
        rollouts.write(tmp_path / "r.parquet", made)
        return (tmp_path / "r.parquet").stat().st_size

    assert size(True) - size(False) < 511 * 4 + 2000, "the prompt once, whatever the completions"


def drawn(make_record: Make, row: int, count: int) -> RolloutRecord:
    """A record of `count` tokens whose logprobs and ids hold as many bits as those of a run."""
    draws = np.random.Generator(np.random.Philox(key=[row, count]))
    logprobs = Logprobs(-draws.exponential(size=count).astype(np.float32), FULL)
    base = make_record(count)
    ids = draws.integers(0, 49152, count).astype(np.int32)
    rollout = replace(base.rollout, id=f"1/{row // 8}/{row % 8}", token_ids=ids, sampler_logprobs=logprobs)
    return replace(base, rollout=rollout, trainer_logprobs=logprobs, advantage=float(draws.normal()))


def test_a_token_costs_few_bytes(tmp_path: File, make_record: Make) -> None:
    """What a step of the recipe for SmolLM2 looks like: 64 completions of 14 tokens. And longer ones, as others are."""
    sizes = {}
    for count in (14, 256):
        path = tmp_path / f"{count}.parquet"
        rollouts.write(path, [drawn(make_record, row, count) for row in range(64)])
        sizes[count] = path.stat().st_size / (64 * count)
    assert sizes[14] <= 50
    assert sizes[256] <= 20


def test_files_that_hold_arrows_schema_and_statistics_too_are_read(tmp_path: File, make_record: Make) -> None:
    """As this version wrote them at first."""
    path, verbose = tmp_path / "r.parquet", tmp_path / "verbose.parquet"
    record = drawn(make_record, 0, 5)
    rollouts.write(path, [record])
    pq.write_table(pq.read_table(path), verbose, compression="zstd", use_dictionary=False)
    assert b"ARROW:schema" in verbose.read_bytes() and b"ARROW:schema" not in path.read_bytes()
    assert bits(rollouts.read(verbose)[0]) == bits(rollouts.read(path)[0]) == bits(record)
