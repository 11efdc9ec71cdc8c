"""A training under glass: honest as long as nobody breaks it, broken where a hook or a patch says, whole afterwards."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lockstep.engine import draw
from lockstep.harness.laboratory import Laboratory
from lockstep.harness.networks import FAMILIES
from lockstep.models.checkpoint import digest
from lockstep.parity.observation import Observation


def tokens_of(seen: Observation) -> list[bytes]:
    return [sample.token_ids.tobytes() for sample in seen.samples]


# -- a clean run


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("in_flight", [False, True])
def test_both_sides_have_the_same_bits_step_after_step(opened, same_bits, family: str, in_flight: bool) -> None:
    with opened(family=family, in_flight=in_flight) as lab:
        for _ in range(3):
            seen = lab.observe()
            assert all(same_bits(sample.sampler, sample.trainer) for sample in seen.samples)
            lab.advance()


def test_a_bf16_pair_has_them_too(opened, same_bits) -> None:
    with opened(dtype="bfloat16") as lab:
        assert all(same_bits(sample.sampler, sample.trainer) for sample in lab.observe().samples)


def test_a_pair_with_noise_differs_by_rounding_only(opened) -> None:
    with opened(exact=False, dtype="bfloat16") as lab:
        assert lab.engine_dtype is torch.float32
        far = np.concatenate([np.abs(s.trainer - s.sampler) for s in lab.observe().samples])
        assert 0 < far.max() < 0.2


def test_a_setup_decides_everything_that_is_drawn_and_learnt(opened) -> None:
    runs = []
    for _ in range(2):
        with opened(seed=5) as lab:
            first = lab.observe()
            lab.advance()
            runs.append((tokens_of(first), tokens_of(lab.observe()), lab.digests))
    assert runs[0] == runs[1]


def test_another_seed_asks_for_something_else(opened) -> None:
    asked = []
    for seed in (1, 2):
        with opened(seed=seed) as lab:
            asked.append([request.prompt_ids for request in lab.requests(1)])
    assert asked[0] != asked[1]


def test_an_observation_has_every_completion_once_in_the_order_of_the_requests(opened) -> None:
    with opened() as lab:
        seen = lab.observe()
    names = [f"s1p{prompt}/{one}" for prompt in range(3) for one in range(2)]
    assert [sample.id for sample in seen.samples] == names
    for sample in seen.samples:
        request = next(r for r in seen.requests if r.id == sample.group)
        assert tuple(sample.prompt_ids) == request.prompt_ids
        assert len(sample.token_ids) == 6


def test_prompts_begin_alike_and_go_on_differently(opened) -> None:
    with opened() as lab:
        asked = [request.prompt_ids for step in (1, 2) for request in lab.requests(step)]
    assert len({prompt[:34] for prompt in asked}) == 1
    assert len(set(asked)) == len(asked)
    assert all(36 <= len(prompt) <= 40 for prompt in asked)


def test_later_prompts_find_the_first_one_in_the_prefix_cache(opened) -> None:
    with opened() as lab:
        cached = {sample.group: sample.num_cached for sample in lab.observe().samples}
    assert cached == {"s1p0": 0, "s1p1": 32, "s1p2": 32}


# -- what is learnt and published


def test_nothing_is_learnt_before_the_advance(opened) -> None:
    with opened() as lab:
        seen = lab.observe()
        assert (lab.trainer.version.number, lab.engine.version.number) == (0, 0)
        assert digest(lab.trainer.snapshot()) == lab.digests[0]
        lab.advance()
        assert lab.trained_on == {sample.id for sample in seen.samples}
        assert seen.history == frozenset()
        assert lab.observe().history == lab.trained_on


def test_an_advance_without_an_observation_is_a_mistake_of_the_caller(opened) -> None:
    with opened() as lab:
        with pytest.raises(AssertionError, match="observe first"):
            lab.advance()
        lab.observe()
        lab.advance()
        with pytest.raises(AssertionError, match="observe first"):
            lab.advance()


def test_every_version_is_kept_as_it_was_published(opened) -> None:
    with opened() as lab:
        for number in range(3):
            assert lab.trainer.version.number == number
            assert digest(lab.history[number]) == lab.digests[number] == lab.trainer.version.digest
            lab.observe()
            lab.advance()
        assert len(set(lab.digests.values())) == 4


def test_at_rest_the_engine_has_the_new_weights_at_once(opened) -> None:
    with opened(in_flight=False) as lab:
        lab.observe()
        lab.advance()
        assert lab.engine.version == lab.trainer.version


def test_in_flight_the_weights_come_while_tokens_are_drawn(opened) -> None:
    with opened(in_flight=True) as lab:
        lab.observe()
        lab.advance()
        assert lab.engine.version.number == 0, "they wait for the next step"
        seen = lab.observe()
        assert lab.engine.version.number == 1
    drawn_by = {tuple(sample.versions.tolist()) for sample in seen.samples}
    assert any(set(versions) == {0, 1} and list(versions) == sorted(versions) for versions in drawn_by)
    for sample in seen.samples:
        ran = {span.version for span in sample.spans} or set(sample.versions.tolist())
        assert set(sample.versions.tolist()) <= ran <= {0, 1}


def test_the_current_series_is_that_of_the_present_weights(opened, same_bits) -> None:
    with opened(in_flight=True) as lab:
        lab.observe()
        lab.advance()
        for sample in lab.observe().samples:
            stale = set(sample.versions.tolist()) != {1} or any(span.version != 1 for span in sample.spans)
            assert same_bits(sample.current, sample.trainer) != stale


def test_the_reference_series_is_that_of_the_first_weights(opened, same_bits) -> None:
    with opened() as lab:
        assert all(same_bits(s.reference, s.trainer) for s in lab.observe().samples)
        lab.advance()
        assert not any(same_bits(s.reference, s.trainer) for s in lab.observe().samples)


def test_old_weights_can_come_back_and_the_new_ones_after_them(opened) -> None:
    with opened() as lab:
        lab.observe()
        lab.advance()
        lab.reinstall(0)
        assert lab.engine.version.number == 0 and lab.engine.version.digest == lab.digests[0]
        lab.reinstall(1)
        assert lab.engine.version == lab.trainer.version


def test_weights_that_are_lost_on_the_way_back_leave_the_serving_ones(opened) -> None:
    with opened() as lab:
        lab.observe()
        lab.advance()
        lab.hooks.publish.append(lambda _: None)
        lab.reinstall(0)
        assert lab.engine.version == lab.trainer.version


# -- what each side says


@pytest.mark.parametrize("fields", [{}, {"dtype": "bfloat16"}, {"exact": False, "dtype": "bfloat16"}])
def test_both_sides_name_the_same_tensors_by_the_same_digests(opened, fields: dict) -> None:
    with opened(**fields) as lab:
        for number in range(2):
            seen = lab.observe()
            assert seen.engine.number == seen.trainer.number == seen.expected.number == number
            assert seen.engine.digest == seen.trainer.digest == seen.expected.digest
            assert seen.engine.tensors == seen.trainer.tensors
            assert set(seen.engine.tensors) == set(lab.network.model.arch.parameter_shapes())
            lab.advance()


# -- hooks and patches


def test_every_place_has_hooks_that_are_applied_in_order(opened) -> None:
    with opened() as lab:
        called: list[str] = []

        def hook(name: str):
            return lambda value: (called.append(name), value)[1]

        for place in ("requests", "transport", "scores", "record", "publish", "statement", "believed"):
            getattr(lab.hooks, place).extend([hook(place), hook(f"{place} again")])
        lab.observe()
        lab.advance()
    order = [name for i, name in enumerate(called) if name not in called[:i]]
    places = ["requests", "transport", "believed", "scores", "statement", "record", "publish"]
    assert order == [name for place in places for name in (place, f"{place} again")]
    assert called.count("believed") == 6, "once for each rollout"


def test_a_hook_on_the_way_to_the_trainer_changes_what_is_observed_and_not_what_is_learnt(opened) -> None:
    digests = []
    for broken in (False, True):
        with opened() as lab:
            if broken:
                lab.hooks.scores.append(lambda samples: [replace(s, trainer=s.trainer + 1) for s in samples])
            seen = lab.observe()
            assert all(np.allclose(s.trainer - s.sampler, broken, atol=1e-6) for s in seen.samples)
            lab.advance()
            digests.append(lab.trainer.version.digest)
    assert digests[0] == digests[1]


def test_what_is_asked_by_a_hook_reaches_the_engine_while_the_trainer_believes_the_original(opened) -> None:
    with opened() as lab:
        lab.hooks.requests.append(lambda asked: [replace(r, prompt_ids=r.prompt_ids[:-1]) for r in asked])
        seen = lab.observe()
        assert [r.prompt_ids for r in seen.requests] == [r.prompt_ids for r in lab.requests(1)]
        for sample in seen.samples:
            asked = next(r for r in seen.requests if r.id == sample.group)
            assert len(sample.prompt_ids) == len(asked.prompt_ids) - 1


def test_patches_are_undone_in_reverse_also_after_an_error(networks, small) -> None:
    before = draw.sample
    with pytest.raises(KeyError), Laboratory(networks, small()) as lab:
        assert lab.patch(draw, "sample", "first") is before
        assert lab.patch(draw, "sample", "second") == "first"
        assert draw.sample == "second"
        raise KeyError
    assert draw.sample is before


def test_a_cache_that_was_emptied_is_found_empty(opened) -> None:
    with opened() as lab:
        asked = [replace(request, id=f"again{i}") for i, request in enumerate(lab.requests(1))]
        lab.run_engine(lab.requests(1))
        assert lab.run_engine(asked)[0][1] == 32
        lab.reset()
        assert lab.run_engine([replace(asked[0], id="after")])[0][1] == 0
        lab.engine._scheduler.pool.check([])
