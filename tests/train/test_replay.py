"""Sequences whose weights changed on the way, scored again bit for bit.

The engine's own forward, pages and draw are driven by hand here: chunks, updates and restarts where hypothesis puts
them. Nothing of that is told to the scorer but the spans.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.core import Provenance, Request, Rollout, SamplingParams, Span
from lockstep.engine.draw import draw
from lockstep.engine.forward import last_hidden
from lockstep.engine.kv import KeyValues
from lockstep.engine.request import Completion, Job
from lockstep.engine.scheduler import Step
from lockstep.engine.weights import Generation
from lockstep.errors import ContractError, InputError, ModelError
from lockstep.kernels.attention import KEY_BLOCK
from lockstep.models.architecture import Architecture
from lockstep.models.checkpoint import digest
from lockstep.models.prepared import prepare
from lockstep.models.tiny import random_parameters, small
from lockstep.train.forward import Forward
from lockstep.train.replay import SpanScorer
from lockstep.weight_update import WeightVersion

FAMILIES, DTYPES = ("llama", "qwen2", "qwen3"), ("float32", "bfloat16")
KINDS = (
    SamplingParams(ignore_eos=True),
    SamplingParams(temperature=0.7, seed=3),
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.3, top_k=7, top_p=0.8, min_p=0.02),
)
NUM_PAGES, PAGE = 48, KEY_BLOCK
VERSIONS = (3, 4, 7)


@dataclass(frozen=True)
class Family:
    """One network with three generations of weights, and a cache to run them over."""

    arch: Architecture
    dtype: str
    head_dtype: str
    generations: dict[int, Generation]

    @property
    def weights(self) -> dict[int, dict[str, torch.Tensor]]:
        return {number: dict(one.params) for number, one in self.generations.items()}

    def scorer(self, max_tokens: int = 64, **changed: dict) -> SpanScorer:
        forward = Forward(self.arch, self.dtype, self.head_dtype)  # type: ignore[arg-type]
        return SpanScorer(forward, changed.get("weights", self.weights), max_tokens)


@pytest.fixture(scope="module")
def family():
    """`family("qwen3", "bfloat16")`, made on first use."""
    made = {}

    def get(name="llama", dtype="float32", head_dtype="float32") -> Family:
        key = (name, dtype, head_dtype)
        if key not in made:
            arch, generations = small(name, vocab_size=61), {}
            for number in VERSIONS:
                params = {n: p.to(getattr(torch, dtype)) for n, p in random_parameters(arch, number).items()}
                version = WeightVersion(number, digest(params))
                generations[number] = Generation(params, prepare(params, arch, head_dtype), version)
            made[key] = Family(arch, dtype, head_dtype, generations)
        return made[key]

    return get


@dataclass
class Hand:
    """One sequence, run by hand: `run` a chunk, `update` the weights, `restart` with keys of its own again."""

    net: Family
    completion: Completion
    kv: KeyValues
    version: int = VERSIONS[0]
    spans: list[Span] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return self.completion.num_drawn == self.completion.job.limit

    def run(self, count: int) -> None:
        done = self.completion
        start = done.computed
        end = min(done.length, start + count)
        done.pages = list(range(-(-end // PAGE)))
        step = Step((done,), (start,), (end - start,), ())
        generation = self.net.generations[self.version]
        with torch.inference_mode():
            draw(step, last_hidden(step, generation, self.net.arch, self.kv), generation)
        done.computed = end
        self.spans.append(Span(start, end, self.version))

    def update(self) -> None:
        at = VERSIONS.index(self.version)
        self.version = VERSIONS[min(at + 1, len(VERSIONS) - 1)]

    def restart(self) -> None:
        self.completion.computed = 0

    def rollout(self) -> Rollout:
        self.completion.finish_reason = "length"
        made = self.completion.rollout("", self.net.head_dtype)
        origin = made.provenance
        spans = tuple(self.spans)
        return replace(made, provenance=Provenance(origin.weight_version, origin.path, origin.cached, spans))


def by_hand(net: Family, prompt, params: SamplingParams, actions, name="r") -> Rollout:
    """A rollout run as `actions` say: ("run", tokens), ("update",) or ("restart",); then to its end."""
    request = Request(name, tuple(prompt), params)
    hand = Hand(
        net,
        Job(request, params.max_tokens).completions[0],
        KeyValues(net.arch, NUM_PAGES, PAGE, getattr(torch, net.dtype), "cpu"),
    )
    for action, *arguments in actions:
        if hand.ended:
            break
        getattr(hand, action)(*arguments)
    while not hand.ended:
        hand.run(1000)
    return hand.rollout()


def bits(series) -> list[list[int]]:
    return [one.values.view(np.int32).tolist() for one in series]


def require_equal(net: Family, rollouts, max_tokens: int) -> None:
    scored = net.scorer(max_tokens).score(rollouts)
    assert bits(scored) == bits([rollout.sampler_logprobs for rollout in rollouts])
    for ours, rollout in zip(scored, rollouts, strict=True):
        assert ours.contract == rollout.sampler_logprobs.contract
        assert not np.any(ours - rollout.sampler_logprobs)


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("run"), st.integers(1, 40)),
        st.tuples(st.just("run"), st.just(1000)),
        st.just(("update",)),
        st.just(("restart",)),
    ),
    max_size=16,
)
SEQUENCES = st.lists(
    st.tuples(st.sampled_from((1, 2, 15, 16, 17, 33, 40)), st.integers(1, 12), st.integers(0, len(KINDS) - 1), ACTIONS),
    min_size=1,
    max_size=3,
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_bit_comes_again_wherever_the_weights_changed(family, name, dtype):
    net = family(name, dtype)

    @settings(max_examples=15)
    @given(SEQUENCES, st.sampled_from((5, 33, 400)))
    def holds(sequences, max_tokens):
        rollouts = []
        for i, (prompt, limit, kind, actions) in enumerate(sequences):
            ids = np.random.default_rng(prompt).integers(3, 61, prompt)
            params = replace(KINDS[kind], max_tokens=limit)
            rollouts.append(by_hand(net, ids.tolist(), params, actions, f"r{i}"))
        require_equal(net, rollouts, max_tokens)

    holds()


SWITCHES = [("run", 20), ("update",), ("run", 1000), *[("run", 1)] * 3, ("update",), ("run", 1)]


def switched(net: Family, count=4, prompt=30, actions=SWITCHES, limit=8) -> list[Rollout]:
    ids = list(range(5, 5 + prompt))
    params = SamplingParams(max_tokens=limit, ignore_eos=True)
    return [by_hand(net, ids, params, actions, f"r{i}") for i in range(count)]


def test_the_example_has_tokens_of_two_versions_over_keys_of_three(family):
    (rollout, *_) = switched(family())
    assert rollout.provenance.weight_version.tolist() == [4] * 4 + [7] * 4
    assert {span.version for span in rollout.provenance.spans} == {3, 4, 7}
    assert rollout.provenance.spans[0] == Span(0, 20, 3)
    assert rollout.sampler_logprobs.contract.weight_versions == (4, 7)


def test_tokens_drawn_before_a_restart_at_the_same_version_keep_the_keys_they_were_drawn_over(family):
    """Run again at the last version over keys that are all new: those rows decide nothing a second time."""
    net = family()
    actions = [("run", 1000), ("run", 1), ("update",), ("run", 1), ("run", 1), ("restart",)]
    rollouts = switched(net, 2, actions=actions)
    assert [span.start for span in rollouts[0].provenance.spans[:6]] == [0, 30, 31, 32, 0, 34]
    assert rollouts[0].provenance.weight_version.tolist() == [3, 3, 4, 4, 4, 4, 4, 4]
    require_equal(net, rollouts, 64)
    pretended = (Span(0, 31, 3), Span(0, 37, 4))
    wrong = [replace(r, provenance=replace(r.provenance, spans=pretended)) for r in rollouts]
    for rollout, scored in zip(rollouts, net.scorer().score(wrong), strict=True):
        ours, theirs = scored.values, rollout.sampler_logprobs.values
        assert ours[[0, 1]].tolist() == theirs[[0, 1]].tolist()
        assert (ours[[2, 3]] != theirs[[2, 3]]).all(), "drawn over keys of version 3"
        assert ours[4:].tolist() == theirs[4:].tolist()


def test_other_keys_than_those_of_the_time_are_noticed(family):
    """As if every row had been run at the version of its token."""
    net = family()
    rollouts = switched(net, 1)
    pretended = (Span(0, 33, 4), Span(33, 37, 7))
    (scored,) = net.scorer().score([replace(rollouts[0], provenance=replace(rollouts[0].provenance, spans=pretended))])
    assert (scored.values != rollouts[0].sampler_logprobs.values).all()


@pytest.mark.parametrize("version", VERSIONS)
def test_wrong_weights_of_one_version_are_noticed_from_there_on(family, version):
    net = family()
    rollouts = switched(net, 1)
    weights = net.weights
    params = dict(weights[version])
    params["layers.0.qkv"] = params["layers.0.qkv"].clone()
    params["layers.0.qkv"][-1, 0] += 0.01  # a value, of the last head
    (scored,) = net.scorer(weights=weights | {version: params}).score(rollouts)
    differs = scored.values != rollouts[0].sampler_logprobs.values
    first = {3: 0, 4: 0, 7: 4}[version]
    assert differs[first:].all()
    assert not differs[:first].any()


@pytest.mark.parametrize("head_dtype", ["float32", "model"])
def test_both_heads(family, head_dtype):
    net = family("qwen2", "bfloat16", head_dtype)
    require_equal(net, switched(net), 64)


def test_company_and_the_size_of_a_forward_do_not_show(family):
    """Groups of all sizes, rows cut anywhere: also where one row is a forward and a pass is longer than its group."""
    net = family("qwen3")
    rollouts = [*switched(net, 2), *switched(net, 1, prompt=3, limit=4), *switched(net, 1, prompt=17, limit=3)]
    expected = bits([rollout.sampler_logprobs for rollout in rollouts])
    for max_tokens in (1, 3, 16, 50, 10_000):
        assert bits(net.scorer(max_tokens).score(rollouts)) == expected
    assert bits(net.scorer().score(rollouts[::-1])) == expected[::-1]
    for rollout, alone in zip(rollouts, expected, strict=True):
        assert bits(net.scorer().score([rollout])) == [alone]


def parts_of(net: Family, rollouts, max_tokens: int) -> list[tuple[int, int]]:
    with torch.no_grad():
        decided = list(net.scorer(max_tokens).decided(rollouts))
    for one in decided:
        assert one.hidden_NE.shape[0] == sum(len(tokens) for _, tokens in one.parts)
        for index, tokens in one.parts:
            assert set(rollouts[index].provenance.weight_version[tokens.start : tokens.stop]) == {one.version}
    return [(index, token) for one in decided for index, tokens in one.parts for token in tokens]


@pytest.mark.parametrize("max_tokens", [2, 40, 1000])
def test_every_token_is_decided_once(family, max_tokens):
    net = family()
    actions = [*SWITCHES, ("restart",), ("run", 9), ("restart",)]
    rollouts = [*switched(net, 2, actions=actions), *switched(net, 1, prompt=2)]
    found = parts_of(net, rollouts, max_tokens)
    assert sorted(found) == [(i, t) for i, rollout in enumerate(rollouts) for t in range(len(rollout.token_ids))]


def count_rows(monkeypatch) -> list[int]:
    import lockstep.train.replay as module

    rows, real = [], module.paged_hidden_states

    def counted(params, arch, ids_T, *rest):
        rows.append(len(ids_T))
        return real(params, arch, ids_T, *rest)

    monkeypatch.setattr(module, "paged_hidden_states", counted)
    return rows


def test_completions_of_one_prompt_share_its_full_pages(family, monkeypatch):
    net = family()
    prompt, limit, count = 2 * KEY_BLOCK + 3, 4, 3
    rollouts = switched(net, count, prompt=prompt, actions=[("run", 1000), ("run", 1), ("update",)], limit=limit)
    rows = count_rows(monkeypatch)
    require_equal(net, rollouts, 1000)
    assert sum(rows) == count * (prompt + limit - 1) - (count - 1) * 2 * KEY_BLOCK
    assert len(rows) == 2, "one forward for each version"


def test_one_prompt_run_at_other_versions_is_not_shared(family):
    """The weights change inside the prompt, at another place for each; or before it, or not at all."""
    net = family()
    starts = ([], [("update",)], *([("run", at), ("update",)] for at in (15, 16, 17, 20, 32, 39)))
    ids = list(range(5, 45))
    params = SamplingParams(max_tokens=2, ignore_eos=True)
    require_equal(net, [by_hand(net, ids, params, start, f"r{i}") for i, start in enumerate(starts)], 1000)


def test_no_forward_has_more_rows_than_it_may(family, monkeypatch):
    net = family()
    rows = count_rows(monkeypatch)
    net.scorer(13).score(switched(net, 3))
    assert max(rows) == 13


def test_a_pass_that_decided_nothing_is_not_run(family, monkeypatch):
    """A prompt that was begun and taken away again costs nothing, and its weights need not be there."""
    net = family()
    rollouts = switched(net, 1, actions=[("run", 20), ("restart",), ("update",)])
    assert rollouts[0].provenance.spans[0] == Span(0, 20, 3)
    rows = count_rows(monkeypatch)
    scored = net.scorer(weights={4: net.weights[4]}).score(rollouts)
    assert bits(scored) == bits([rollouts[0].sampler_logprobs])
    assert sum(rows) == 30 + 7


def test_weights_that_are_gone_are_named(family):
    net = family()
    weights = net.weights
    del weights[4]
    with pytest.raises(
        InputError, match=r"rollout \(r0/0\): .* - got no weights of version 4, .* held: 3, 7\. Keep more"
    ):
        net.scorer(weights=weights).score(switched(net, 1))


def test_weights_of_another_network_are_refused(family):
    net = family()
    weights = net.weights
    weights[7] = {**weights[7], "norm": weights[7]["norm"].bfloat16()}
    with pytest.raises(ModelError, match=r"parameter \(norm\)"):
        net.scorer(weights=weights).score(switched(net, 1))


def test_what_cannot_be_scored_is_refused(family):
    net = family()
    (rollout,) = switched(net, 1)
    with pytest.raises(InputError, match="0 rollouts"):
        net.scorer().score([])
    with pytest.raises(InputError, match="versions never fall"):
        net.scorer().score(
            [replace(rollout, provenance=replace(rollout.provenance, spans=(Span(0, 33, 7), Span(33, 37, 4))))]
        )
    with pytest.raises(InputError, match="must be in the vocabulary"):
        net.scorer().score([replace(rollout, token_ids=rollout.token_ids + 61)])
    with pytest.raises(ContractError, match="one head on both sides"):
        family(head_dtype="model").scorer().score([rollout])
