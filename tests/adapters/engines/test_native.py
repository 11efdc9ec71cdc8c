from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lockstep.adapters.engines.native import NativeEngine, NativeTrainer
from lockstep.adapters.engines.transformers_scorer import Transformers
from lockstep.adapters.engines.workload import Workload
from lockstep.core import SamplingParams
from lockstep.errors import ConfigError, InputError
from lockstep.parity.side import CannotAsk

PARAMS = SamplingParams(temperature=0.8, max_tokens=6, n=2, ignore_eos=True)


def requests(tiny, step=1, **fields):

    return Workload(replace(PARAMS, **fields), prompts=2).requests(tiny.tokenizer, step)


def same_bits(ours, theirs) -> bool:
    return all(np.array_equal(a.view(np.int32), b.view(np.int32)) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_engine_and_trainer_agree_in_every_bit_through_an_update(publisher, tiny, dtype):
    with NativeEngine(publisher, {"dtype": dtype}) as engine, NativeTrainer(publisher, {"dtype": dtype}) as trainer:
        for step in (1, 2):
            samples = engine.sample(requests(tiny, step, top_p=0.9))
            assert same_bits([s.sampler for s in samples], trainer.score(samples))
            engine.update(publisher.learn(samples))
            trainer.update(publisher.newest)
        assert engine.state().number == trainer.state().number == 2


def test_prompt_scores_are_those_of_the_tokens_as_drawn(publisher, tiny):
    with NativeEngine(publisher, {}) as engine:
        samples = engine.sample(requests(tiny))
        assert same_bits([s.sampler for s in samples], engine.score(samples))


def test_a_lost_update_is_lost_and_the_label_stays(publisher, tiny):
    with NativeEngine(publisher, {"weights": "lost"}) as engine:
        before = engine.sample(requests(tiny))
        engine.update(publisher.learn(before))
        assert engine.state().number == 0 and engine.state().settings["weights"] == "lost"
        again = engine.sample(requests(tiny))
        assert same_bits([s.sampler for s in before], [s.sampler for s in again])


def test_rising_versions_only_and_no_reset(publisher, tiny):
    with NativeEngine(publisher, {}) as engine:
        engine.update(publisher.learn(engine.sample(requests(tiny))))
        with pytest.raises(CannotAsk, match="older"):
            engine.update(0)
        with pytest.raises(CannotAsk):
            engine.reset()


def test_settings_are_the_engines_own_and_resolved(publisher):
    with NativeEngine(publisher, {"head_dtype": "model", "prefix_cache": "salt"}) as engine:
        said = engine.state().settings
    assert said["head_dtype"] == said["dtype"] == "bfloat16" and said["cache_salt"] == "per_version"
    with pytest.raises(ConfigError):
        NativeEngine(publisher, {"gpu_memory_utilization": 0.9})


@pytest.mark.parametrize("settings", [{"dtype": "float16"}, {"temperature": 1}, {"head_dtype": "bfloat16"}])
def test_the_trainer_refuses_what_it_does_not_have(publisher, settings):
    with pytest.raises(InputError, match="no such setting"):
        NativeTrainer(publisher, settings)


class TestTransformers:
    def test_it_is_the_trainer_to_within_rounding_where_nothing_is_cut(self, publisher, tiny):
        with (
            NativeEngine(publisher, {"dtype": "float32"}) as engine,
            Transformers(publisher, {"dtype": "float32"}) as scorer,
        ):
            samples = engine.sample(requests(tiny))
            far = [np.abs(s.sampler - own).max() for s, own in zip(samples, scorer.score(samples), strict=True)]
            assert 0 < max(far) < 1e-4
            scorer.update(publisher.learn(samples))
            moved = [np.abs(s.sampler - own).max() for s, own in zip(samples, scorer.score(samples), strict=True)]
            assert max(moved) > 1e-3, "the new weights are in place"
            engine.update(publisher.newest)
            samples = engine.sample(requests(tiny, 2))
            far = [np.abs(s.sampler - own).max() for s, own in zip(samples, scorer.score(samples), strict=True)]
            assert max(far) < 1e-4

    def test_it_normalises_over_all_tokens_whatever_was_kept(self, publisher, tiny):
        with (
            NativeEngine(publisher, {"dtype": "float32"}) as engine,
            Transformers(publisher, {"dtype": "float32"}) as scorer,
        ):
            samples = engine.sample(requests(tiny, top_k=3))
            for one, own in zip(samples, scorer.score(samples), strict=True):
                assert (own < one.sampler + 1e-5).all() and own.sum() < one.sampler.sum() - 0.1

    def test_settings(self, publisher):
        with pytest.raises(InputError, match="no such setting"):
            Transformers(publisher, {"device_map": "auto"})
        with Transformers(publisher, {}) as scorer:
            said = scorer.state()
            assert said.name.startswith("transformers ") and said.settings["head_dtype"] == "bfloat16"
            assert scorer.can == {"score", "update"}
