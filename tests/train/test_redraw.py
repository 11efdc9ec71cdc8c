"""The engine's rollouts run once more: while weights change, prefixes are found and pages are taken away.

Every logprob comes again bit for bit, every token is drawn again; and what was tampered with is named.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from lockstep import models
from lockstep.config import EngineConfig, parse
from lockstep.core import (
    Logprobs,
    Path,
    Request,
    Rollout,
    SamplingParams,
    Support,
)
from lockstep.engine import Engine
from lockstep.errors import InputError
from lockstep.models import tiny
from lockstep.models.checkpoint import digest
from lockstep.train import Trainer
from lockstep.train.forward import Forward
from lockstep.train.history import WeightHistory
from lockstep.train.redraw import first_divergence, redraw
from lockstep.train.replay import SpanScorer
from lockstep.weight_update import UpdatePolicy, WeightVersion

KINDS = (
    SamplingParams(),
    SamplingParams(temperature=0.7, seed=4),
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.3, top_k=7, top_p=0.8, min_p=0.02),
    SamplingParams(temperature=0.9, repetition_penalty=1.3, frequency_penalty=0.4, bad_words=((7,), (9, 11))),
    SamplingParams(temperature=0.0, presence_penalty=1.1, logit_bias=((5, 2.0), (8, -1.5))),
)


@dataclass(frozen=True)
class Network:
    """A random model; `weights(n)` are those of version n."""

    model: models.Model
    dtype: str

    def weights(self, number: int) -> tuple[dict[str, torch.Tensor], WeightVersion]:
        drawn = tiny.random_parameters(self.model.arch, number)
        params = {name: tensor.to(getattr(torch, self.dtype)) for name, tensor in drawn.items()}
        return params, WeightVersion(number, digest(params))

    def engine(self, **settings) -> Engine:
        config = EngineConfig(**{"dtype": self.dtype, "kv_cache_gb": 0.004, **settings})
        return Engine(self.model, *self.weights(0), config)

    def scorer(self, *numbers: int, max_tokens: int = 64) -> SpanScorer:
        history = WeightHistory(keep=max(len(numbers), 1))
        for number in numbers or (0,):
            params, version = self.weights(number)
            history.add(version, params)
        history.check()
        return SpanScorer(Forward(self.model.arch, self.dtype, "float32"), history.by_number, max_tokens)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    made = {}

    def get(family="llama", dtype="float32") -> Network:
        if family not in made:
            directory = tmp_path_factory.mktemp("models") / family
            made[family] = models.load(str(tiny.build_random(directory, tiny.small(family, vocab_size=61))))
        return Network(made[family], dtype)

    return get


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def bits(series) -> list[list[int]]:
    return [one.view(np.int32).tolist() for one in series]


def ask(count: int, rng: random.Random) -> list[Request]:
    """Requests of all kinds, some of which begin alike."""
    common = [rng.randrange(3, 61) for _ in range(40)]
    made = []
    for i in range(count):
        ids = common[: rng.choice((0, 16, 33))] + [rng.randrange(3, 61) for _ in range(rng.choice((1, 2, 15, 16, 20)))]
        params = replace(KINDS[i % len(KINDS)], max_tokens=rng.randrange(1, 20), n=rng.choice((1, 1, 3)))
        made.append(Request(f"r/{i}", tuple(ids), replace(params, ignore_eos=i % 2 == 0)))
    return made


def in_flight(net: Network, engine: Engine, seed: int, kv=("keep", "salt", "recompute")) -> tuple[list[Rollout], int]:
    """Rollouts drawn while new weights come in at random, and the last version."""
    rng = random.Random(seed)
    queue, done, version = ask(14, rng), [], 0
    while queue or engine.has_work:
        for _ in range(rng.choice((0, 1, 4))):
            if queue:
                engine.add(queue.pop())
        if rng.random() < 0.12:
            version += 1
            engine.update_weights(*net.weights(version), UpdatePolicy(kv=rng.choice(kv)))
        if rng.random() < 0.02:
            done += [r for i in range(14) for r in engine.abort(f"r/{i}") if len(r.token_ids)]
        done += engine.step()
    return [rollout for rollout in done if len(rollout.token_ids)], version


def require_equal(rollouts, redrawn, scored) -> None:
    assert bits([one.values for one in scored]) == bits([r.sampler_logprobs.values for r in rollouts])
    for mine, rollout in zip(scored, rollouts, strict=True):
        assert mine.contract == rollout.sampler_logprobs.contract
    assert bits([again.logprobs for again in redrawn]) == bits([one.values for one in scored])
    assert [again.token_ids.tolist() for again in redrawn] == [r.token_ids.tolist() for r in rollouts]
    assert first_divergence(rollouts, redrawn) is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_weights_that_change_in_flight_leave_nothing_that_cannot_be_run_again(network, family, dtype):
    net = network(family, dtype)
    seen, restarts, hits, aborted = set(), 0, 0, 0
    for seed, settings in enumerate(({}, {"max_tokens_per_step": 24}, {"max_sequences": 6}, {})):
        pages = 0.0002 if dtype == "float32" else 0.0001
        engine = net.engine(**{"kv_cache_gb": pages, "max_tokens_per_step": 64, **settings})
        rollouts, last = in_flight(net, engine, seed)
        scorer = net.scorer(*range(last + 1), max_tokens=(50, 400)[seed % 2])
        require_equal(rollouts, redraw(scorer, rollouts), scorer.score(rollouts))
        for rollout in rollouts:
            seen.add(len({span.version for span in rollout.provenance.spans}))
            restarts += sum(span.start == 0 for span in rollout.provenance.spans[1:])
            hits += bool(rollout.provenance.cached.any())
            aborted += rollout.finish_reason == "abort"
    assert len(seen) > 1, "some over keys of several versions"
    assert restarts > 3
    assert hits > 3


def test_at_one_version_they_are_the_trainers_logprobs(network):
    """Scored at the versions of the sampler is scored by the trainer, while it still has these weights."""
    net = network("qwen3", "bfloat16")
    rollouts = net.engine().sample([replace(r, id=str(i)) for i, r in enumerate(ask(10, random.Random(1)))])
    trainer = Trainer(net.model, net.weights(0)[0], parse({"engine": {"dtype": "bfloat16"}}))
    scorer = net.scorer()
    expected = trainer.score(rollouts)
    scored = scorer.score(rollouts)
    assert bits([one.values for one in scored]) == bits([one.values for one in expected])
    assert [one.contract for one in scored] == [one.contract for one in expected]
    plain = [replace(r, provenance=replace(r.provenance, spans=())) for r in rollouts]
    assert bits([one.values for one in scorer.score(plain)]) == bits([one.values for one in expected])
    require_equal(rollouts, redraw(scorer, rollouts), scored)


@pytest.fixture
def drawn(network):
    """Two rollouts and their scorer: one truncated, one not."""
    net = network()
    params = (SamplingParams(max_tokens=5, ignore_eos=True), SamplingParams(max_tokens=5, top_k=3, ignore_eos=True))
    rollouts = net.engine().sample([Request(f"q{i}", (5, 6, 7), one) for i, one in enumerate(params)])
    return net.scorer(), rollouts


def test_a_token_that_was_changed_is_named(drawn):
    scorer, (first, second) = drawn
    tampered = first.token_ids.copy()
    tampered[2] = (tampered[2] + 1) % 61
    rollouts = [second, replace(first, token_ids=tampered)]
    found = first_divergence(rollouts, redraw(scorer, rollouts))
    assert found is not None
    assert (found.rollout_id, found.index, found.position, found.what) == ("q0/0", 2, 5, "token")
    assert (found.got, found.expected) == (f"id {first.token_ids[2]}", f"id {tampered[2]}")
    assert (found.path, found.version) == (Path.DECODE.name.lower(), 0)
    assert str(found) == (
        f"token (rollout q0/0, token 2): running it again must give the same bits - got id {first.token_ids[2]}, "
        f"expected id {tampered[2]}. Look at position 5, weight version 0, path decode."
    )


def test_one_bit_of_a_logprob_is_named(drawn):
    scorer, (first, second) = drawn
    values = second.sampler_logprobs.values.copy()
    values.view(np.int32)[3] ^= 1
    rollouts = [first, replace(second, sampler_logprobs=Logprobs(values, second.sampler_logprobs.contract))]
    found = first_divergence(rollouts, redraw(scorer, rollouts))
    assert found is not None
    assert (found.rollout_id, found.index, found.what) == ("q1/0", 3, "logprob")
    now, then = (int(word.rpartition("(")[2].rstrip(")"), 16) for word in (found.got, found.expected))
    assert now ^ then == 1


def test_a_support_with_another_token_is_named(drawn):
    scorer, (first, second) = drawn
    assert second.support is not None
    kept = second.support.ids[3:6].tolist()
    more = next(i for i in range(61) if i not in kept)
    ids = np.concatenate((second.support.ids[:6], [more], second.support.ids[6:])).astype(np.int32)
    offsets = second.support.offsets + (np.arange(6) > 1)
    rollouts = [first, replace(second, support=Support(ids, offsets))]
    found = first_divergence(rollouts, redraw(scorer, rollouts))
    assert found is not None
    assert (found.rollout_id, found.index, found.what) == ("q1/0", 1, "support")
    assert (found.got, found.expected) == (str(kept), str([*kept, more]))


@pytest.mark.parametrize("changes", [{"seed": 1}, {"temperature": 0.5}], ids=["the seed", "the temperature"])
def test_other_parameters_draw_otherwise(drawn, changes):
    scorer, (first, _) = drawn
    other = replace(first, params=replace(first.params, **changes))
    found = first_divergence([other], redraw(scorer, [other]))
    assert found is not None


def test_the_id_is_the_key(drawn):
    scorer, (first, _) = drawn
    for name in ("q0/1", "other/0"):
        found = first_divergence([one := replace(first, id=name)], redraw(scorer, [one]))
        assert found is not None
        assert found.what == "token"
    for name in ("q0", "q0/", "q0/x", "q0/-1"):
        with pytest.raises(InputError, match=rf"rollout \({name}\): its id names request and sample"):
            redraw(scorer, [replace(first, id=name)])


def test_other_weights_diverge_at_the_first_token(network, drawn):
    _, rollouts = drawn
    net = network()
    wrong = SpanScorer(Forward(net.model.arch, "float32", "float32"), {0: net.weights(1)[0]}, 64)
    found = first_divergence(rollouts, redraw(wrong, rollouts))
    assert found is not None
    assert (found.rollout_id, found.index) == ("q0/0", 0)
