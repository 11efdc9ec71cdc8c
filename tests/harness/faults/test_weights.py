"""WGT: what computes is not what the trainer thinks, from the first update after the fault on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lockstep.harness.faults.weights import INJECTIONS, forged
from lockstep.models.checkpoint import digest
from lockstep.parity.hypothesis import Hypothesis, Weights

CODES = [injection.code for injection in INJECTIONS]
OLD = Hypothesis(weights=Weights(version=0))


stories = pytest.mark.parametrize("story", CODES, indirect=True)


@stories
def test_it_bites_from_its_onset_on(story, moved) -> None:
    assert not any(moved(clean) for clean in story.clean)
    assert moved(story.at) and moved(story.later)


def bits_of_sampler(story, hypothesis: Hypothesis) -> bool:
    """Whether the engine's series are those of the hypothesis, bit for bit."""
    pairs = zip(story.at.samples, story.explained(story.at, hypothesis), strict=True)
    return all(sample.sampler.tobytes() == series.tobytes() for sample, series in pairs)


@pytest.mark.parametrize("code", ["WGT01", "WGT05", "WGT08", "WGT10"])
def test_the_engine_goes_on_with_the_old_weights(tell, code: str) -> None:
    assert bits_of_sampler(tell(code), OLD)


def test_a_part_of_the_tensors_stays_old(tell) -> None:
    story = tell("WGT02")
    stale = frozenset(name for name in story.lab.history[0] if name.startswith("layers.1."))
    assert bits_of_sampler(story, Hypothesis(weights=Weights(stale=stale, older=0)))
    held, history = story.lab.engine.weights.serving.params, story.lab.history
    for name, tensor in held.items():
        assert torch.equal(tensor, history[0 if name in stale else 2][name]), name


def test_only_the_head_stays_old(tell) -> None:
    story = tell("WGT04")
    assert bits_of_sampler(story, Hypothesis(weights=Weights(stale=frozenset({"head"}), older=0)))
    assert story.at.engine.tensors == story.at.trainer.tensors, "what is read back is new"


def test_a_torn_swap_breaks_rows_after_honest_ones(tell) -> None:
    story = tell("WGT03")
    assert story.at.engine.tensors == story.at.trainer.tensors, "the swap is finished by then"
    honest = story.explained(story.at)
    firsts = []
    for sample, series in zip(story.at.samples, honest, strict=True):
        differing = np.flatnonzero(sample.sampler.view(np.int32) != series.view(np.int32))
        firsts += differing[:1].tolist()
    assert firsts and min(firsts) > 0, "tokens that were drawn before the swap are right"


def test_the_trainer_scores_with_its_masters(tell, same_bits) -> None:
    story = tell("WGT07")
    assert bits_of_sampler(story, Hypothesis())
    masters = story.explained(story.later, Hypothesis(weights=Weights(name="masters")))
    assert all(same_bits(sample.trainer, series) for sample, series in zip(story.later.samples, masters, strict=True))


def test_a_gain_grows_with_every_update(tell) -> None:
    story = tell("WGT06")
    serving = story.lab.engine.weights.serving
    kept, used = serving.params["layers.0.post_norm"], serving.prepared.operands["layers.0.post_norm"]
    assert torch.allclose(used, kept * 1.25**2), "two updates"
    assert torch.equal(kept, story.lab.history[2]["layers.0.post_norm"])


def test_the_head_keeps_the_scale_of_an_older_one(tell) -> None:
    story = tell("WGT09")
    serving = story.lab.engine.weights.serving
    old, new = (story.lab.history[number]["embedding"] for number in (0, 2))
    used = serving.prepared.head.weight_OI
    assert float(used.abs().max()) == pytest.approx(float(old.abs().max()))
    assert torch.allclose(used * (new.abs().max() / used.abs().max()), new)
    assert not torch.allclose(used, new)


@pytest.mark.parametrize("seed", [0, 1])
def test_an_engine_that_lost_its_updates_says_the_old_number_or_nothing(tell, seed: int) -> None:
    said = tell("WGT01", seed=seed).at.engine
    assert (said.number, bool(said.digest), bool(said.tensors)) == ((None, False, False) if seed else (0, True, True))


@pytest.mark.parametrize("seed", [0, 1])
def test_skipped_tensors_show_only_where_they_are_read_back(tell, seed: int) -> None:
    at = tell("WGT02", seed=seed).at
    assert (at.engine.number, at.engine.digest) == (at.expected.number, at.expected.digest)
    different = {name for name, own in at.engine.tensors.items() if own != at.trainer.tensors[name]}
    assert bool(at.engine.tensors) == bool(seed)
    assert {name.split(".")[1] for name in different} == ({"1"} if seed else set())


def test_a_label_that_moved_on_has_the_digest_of_what_is_there(tell) -> None:
    at = tell("WGT05").at
    assert at.engine.number == at.expected.number == 1
    assert at.engine.digest == tell("WGT05").lab.digests[0] != at.expected.digest


@pytest.mark.parametrize("code", ["WGT04", "WGT06", "WGT09", "WGT10"])
def test_derived_state_that_is_wrong_does_not_show_in_what_is_read_back(tell, code: str) -> None:
    at = tell(code).at
    assert at.engine.tensors == at.trainer.tensors
    assert at.engine.digest == at.expected.digest


def test_an_acknowledged_update_repeats_the_label_and_reads_nothing_back(tell) -> None:
    at = tell("WGT08").at
    assert (at.engine.number, at.engine.digest) == (at.expected.number, at.expected.digest)
    assert at.engine.tensors == {}


@pytest.mark.parametrize("code", [code for code in CODES if code not in ("WGT03", "WGT07")])
def test_tokens_carry_no_label_where_the_trainer_believes_the_newest(tell, code: str) -> None:
    for sample in tell(code).at.samples:
        assert sample.versions is None and sample.spans == ()


def test_forged_weights_are_taken_for_the_version_that_was_named(opened) -> None:
    with opened() as lab:
        sent = forged(lab.history[0], 7)
        assert (sent.version.number, sent.version.digest) == (7, digest(lab.history[0]))
        lab.engine.update_weights(sent.params, sent.version, lab.policy, share=True)
        assert lab.engine.version.number == 7
