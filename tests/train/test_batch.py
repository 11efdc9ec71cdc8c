"""The one shift, packing under a budget, and what may not be trained on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lockstep.core import Contract, Logprobs, Provenance, SamplingParams, Support
from lockstep.errors import ContractError, InputError
from lockstep.train.batch import Batch, pack, plan, sequences


def test_the_example_of_the_drawing(make):
    first = make.rollout((10, 11, 12), (20, 21))
    second = make.rollout((13,), (22, 23, 24))
    packed = pack(sequences([first, second]), [0, 1])
    assert packed.ids_T.tolist() == [10, 11, 12, 20, 13, 22, 23]
    assert packed.positions_T.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert packed.rows_N.tolist() == [2, 3, 4, 5, 6]
    assert packed.targets_N.tolist() == [20, 21, 22, 23, 24]
    assert packed.sequence_N.tolist() == [0, 0, 1, 1, 1]
    assert [(s.keys.tolist(), s.count) for s in packed.segments] == [
        ([0, 1, 2], 3),
        ([0, 1, 2, 3], 1),
        ([4], 1),
        ([4, 5, 6], 2),
    ]


def test_equal_prompts_are_packed_once(make):
    pairs = sequences(
        [make.rollout((10, 11), (20, 21)), make.rollout((10, 11), (30,)), make.rollout((10, 11), (40, 41))]
    )
    packed = pack(pairs, [0, 1, 2])
    assert packed.ids_T.tolist() == [10, 11, 20, 40]
    assert packed.positions_T.tolist() == [0, 1, 2, 2]
    assert packed.rows_N.tolist() == [1, 2, 1, 1, 3]
    assert packed.targets_N.tolist() == [20, 21, 30, 40, 41]
    assert [s.keys.tolist() for s in packed.segments] == [[0, 1], [0, 1, 2], [0, 1, 3]]


def test_a_completion_of_one_token_feeds_the_prompt_only(make):
    packed = pack(sequences([make.rollout((10, 11), (20,))]), [0])
    assert packed.ids_T.tolist() == [10, 11]
    assert packed.rows_N.tolist() == [1]
    assert packed.targets_N.tolist() == [20]


shapes = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 7), st.sampled_from([-1.0, 0.0, 0.5])), min_size=1)


@given(shapes=shapes, budget=st.integers(1, 40), normalize=st.sampled_from(["token", "sequence"]))
def test_every_token_is_a_target_once_and_its_row_is_the_one_before(make, shapes, budget, normalize):
    draw = np.random.default_rng(len(shapes))
    rollouts = [
        make.rollout(np.arange(p), draw.integers(0, 99, c), name=str(i))  # prompts of one length are equal
        for i, (p, c, _) in enumerate(shapes)
    ]
    batch = Batch.of(rollouts, [a for _, _, a in shapes], normalize)
    seen, weights = [], 0.0
    for micro in batch.microbatches(budget):
        packed = micro.packed
        assert sum(segment.count for segment in packed.segments) == len(packed.ids_T)
        assert len(packed.ids_T) <= budget or len(packed.index) == 1
        rows = packed.split(np.arange(micro.num_targets))
        seen_by = {int(row): s.keys[: len(s.keys) - s.count + i + 1] for s in packed.segments
                   for i, row in enumerate(s.keys[-s.count :])}  # fmt: skip
        for s, i in enumerate(packed.index):
            whole = [*rollouts[i].prompt_ids, *rollouts[i].token_ids]
            assert packed.targets_N[rows[s]].tolist() == list(rollouts[i].token_ids)
            for k, row in enumerate(packed.rows_N[rows[s]].tolist()):
                context = seen_by[row]
                assert packed.ids_T[context].tolist() == whole[: len(rollouts[i].prompt_ids) + k]
                assert packed.positions_T[context].tolist() == list(range(len(context)))
            assert micro.advantages_N[rows[s]].tolist() == [shapes[i][2]] * len(rows[s])
        assert micro.has_signal == any(shapes[i][2] != 0 for i in packed.index)
        seen += packed.index
        weights += float(micro.weights_N.double().sum())
    with_signal = [i for i, (_, _, a) in enumerate(shapes) if a != 0]
    assert seen == with_signal + [i for i in range(len(shapes)) if i not in with_signal]
    assert weights == pytest.approx(1.0, abs=1e-5)


def test_weights_are_means_over_tokens_or_over_sequences(make):
    rollouts = [make.rollout(tokens=(8,)), make.rollout(tokens=(8, 9, 10))]
    (by_token,) = Batch.of(rollouts, [1, 1], "token").microbatches(100)
    (by_sequence,) = Batch.of(rollouts, [1, 1], "sequence").microbatches(100)
    assert by_token.weights_N.tolist() == pytest.approx([1 / 4] * 4)
    assert by_sequence.weights_N.tolist() == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6])


def test_rollouts_without_signal_are_kept_but_packed_apart(make):
    rollouts = [make.rollout(name=str(i), task=f"t{i // 2}") for i in range(6)]
    batch = Batch.of(rollouts, [1, -1, 0, 0, 0, 2])
    assert batch.groups_without_signal == 1
    assert batch.has_signal.tolist() == [True, True, False, False, False, True]
    assert [m.packed.index for m in batch.microbatches(1000)] == [(0, 1, 5), (2, 3, 4)]
    assert [m.has_signal for m in batch.microbatches(1000)] == [True, False]


def test_the_sampler_s_logprobs_stay_with_their_tokens(make):
    rollouts = [
        make.rollout(logprobs=np.array([-1, -2], np.float32)),
        make.rollout(logprobs=np.array([-3, -4], np.float32), name="r1"),
    ]
    micros = Batch.of(rollouts, [0.0, 1.0]).microbatches(1000)
    assert [m.packed.index for m in micros] == [(1,), (0,)]
    assert [m.sampler_logprobs_N.tolist() for m in micros] == [[-3, -4], [-1, -2]]
    assert all(m.sampler_logprobs_N.dtype is torch.float32 for m in micros)


@given(shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 30)), min_size=1), budget=st.integers(1, 50))
def test_a_plan_is_ordered_whole_and_greedy(shapes, budget):
    pairs = [(np.arange(p), np.arange(c)) for p, c in shapes]
    runs = list(plan(pairs, range(len(pairs)), budget))
    assert [i for run in runs for i in run] == list(range(len(pairs)))

    def size(chosen):
        return len(pack(pairs, chosen).ids_T)

    for run, following in zip(runs, [*runs[1:], None], strict=True):
        assert size(run) <= budget or len(run) == 1
        assert following is None or size([*run, following[0]]) > budget


@given(count=st.integers(1, 20), n=st.integers(1, 20), step=st.integers(0, 5))
def test_minibatches_are_a_partition_that_only_seed_and_step_decide(make, count, n, step):
    rollouts = [make.rollout(name=str(i)) for i in range(count)]
    batch = Batch.of(rollouts, np.arange(count, dtype=float))
    if n > count:
        with pytest.raises(InputError, match=r"every minibatch needs a rollout - got"):
            batch.minibatches(n, seed=0, step=step)
        return
    parts = batch.minibatches(n, seed=7, step=step)
    again = batch.minibatches(n, seed=7, step=step)
    assert [[r.id for r in p.rollouts] for p in parts] == [[r.id for r in p.rollouts] for p in again]
    assert sorted(int(r.id) for p in parts for r in p.rollouts) == list(range(count))
    assert max(len(p.rollouts) for p in parts) - min(len(p.rollouts) for p in parts) <= 1
    for part in parts:
        assert [float(r.id) for r in part.rollouts] == part.advantages.tolist()


def test_minibatches_differ_from_step_to_step_and_one_is_the_batch_itself(make):
    batch = Batch.of([make.rollout(name=str(i)) for i in range(16)], np.ones(16), "sequence")
    drawn = [[r.id for r in batch.minibatches(2, seed=0, step=s)[0].rollouts] for s in range(4)]
    assert len({tuple(d) for d in drawn}) > 1
    assert batch.minibatches(1, seed=0, step=3)[0] is batch
    assert batch.minibatches(2, seed=0, step=0)[1].normalize == "sequence"


TRUNCATED = SamplingParams(top_k=3)


def test_a_microbatch_tells_the_head_what_the_sampler_kept(make):
    first = make.rollout(tokens=(8, 9), params=TRUNCATED, kept=[[8, 1], [9, 2, 3]])
    second = make.rollout(tokens=(4,), params=TRUNCATED, kept=[[5, 4]], name="r1")
    (micro,) = Batch.of([first, second], [1, 1]).microbatches(100)
    assert micro.targets.ids_N.tolist() == micro.packed.targets_N.tolist() == [8, 9, 4]
    assert micro.targets.support is not None
    assert micro.targets.support.offsets.tolist() == [0, 2, 5, 7]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokens": ()}, "got 3 prompt and 0 completion tokens"),
        ({"prompt": ()}, "got 0 prompt and 2 completion tokens"),
        ({"logprobs": np.array([-1.0, np.nan], np.float32)}, r"must be finite - got nan at token 1"),
        ({"logprobs": np.array([-np.inf, -1.0], np.float32)}, r"must be finite - got -inf at token 0"),
        ({"logprobs": np.zeros(0, np.float32)}, r"missing or misaligned logprobs - got float32 \(0,\)"),
        ({"logprobs": np.zeros(3, np.float32)}, r"missing or misaligned logprobs - got float32 \(3,\)"),
        ({"logprobs": np.zeros((2, 1), np.float32)}, "missing or misaligned"),
        ({"logprobs": np.zeros(2)}, "misaligned logprobs - got float64"),
        ({"params": TRUNCATED}, "support must follow the contract - got none"),
        ({"kept": [[8], [9]]}, "support must follow the contract - got one"),
        ({"params": TRUNCATED, "kept": [[8]]}, "misaligned support - got 1 entries, expected 2"),
        ({"params": TRUNCATED, "kept": [[8, 9], []]}, "misaligned support"),
        ({"params": TRUNCATED, "kept": [[8, 1], [1, 2]]}, "outside its own support - got token 9 at 1"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_and_never_mended(make, changes, words):
    with pytest.raises(InputError, match=rf"rollout \(bad\): .*{words}"):
        Batch.of([make.rollout(), make.rollout(**changes, name="bad")], [1.0, 1.0])


def test_a_support_that_says_more_than_it_holds_is_refused(make):
    good = make.rollout(params=TRUNCATED, kept=[[8], [9]])
    torn = replace(good, support=Support(good.support.ids, good.support.offsets + 1))
    with pytest.raises(InputError, match="misaligned support"):
        Batch.of([torn], [1.0])


def test_provenance_must_cover_every_token(make):
    good = make.rollout()
    short = Provenance(good.provenance.weight_version[:1], good.provenance.path[:1], good.provenance.cached[:1])
    with pytest.raises(InputError, match="provenance of 1"):
        Batch.of([replace(good, provenance=short)], [1.0])


@pytest.mark.parametrize("advantages", [[1.0], [1.0, np.nan], [1.0, np.inf], [[1.0, 1.0]], []])
def test_every_rollout_needs_a_finite_advantage(make, advantages):
    with pytest.raises(InputError, match=r"batch \(advantages\)"):
        Batch.of([make.rollout(), make.rollout()], advantages)


def test_an_empty_batch_is_refused():
    with pytest.raises(InputError, match="there must be something to score"):
        Batch.of([], [])


@pytest.mark.parametrize(
    "other",
    [{"params": SamplingParams(temperature=0.7)}, {"head": "model"}],
)
def test_a_batch_has_one_contract(make, other):
    with pytest.raises(ContractError, match="one contract"):
        Batch.of([make.rollout(), make.rollout(**other)], [1.0, 1.0])


def test_a_batch_may_mix_weight_versions(make):
    """Whether a token is too old is the trainer's question, which knows its own version."""
    batch = Batch.of([make.rollout(), make.rollout(version=1)], [1.0, 1.0])
    versions = [rollout.sampler_logprobs.contract.weight_versions for rollout in batch.rollouts]
    assert versions == [(0,), (1,)]


def test_greedy_rollouts_are_refused_with_what_to_do(make):
    greedy = make.rollout(params=SamplingParams(temperature=0.0))
    with pytest.raises(ContractError, match=r"got greedy sampling, .* Sample training rollouts with temperature > 0"):
        Batch.of([greedy], [1.0])


def test_raw_logprobs_are_refused(make):
    good = make.rollout(params=SamplingParams(temperature=0.7))
    raw = Logprobs(good.sampler_logprobs.values, Contract("raw", 1.0, "full", "float32", (0,)))
    with pytest.raises(ContractError, match="got raw logprobs"):
        Batch.of([replace(good, sampler_logprobs=raw)], [1.0])


def test_a_contract_that_contradicts_the_sampling_is_refused(make):
    good = make.rollout(params=SamplingParams(temperature=0.7))
    claims = Logprobs(good.sampler_logprobs.values, Contract("processed", 1.0, "full", "float32", (0,)))
    with pytest.raises(ContractError, match=r"logprobs \(temperature\)"):
        Batch.of([replace(good, sampler_logprobs=claims)], [1.0])
