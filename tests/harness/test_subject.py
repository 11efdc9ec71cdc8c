"""The engine of a laboratory as an audit uses it: by the same (possibly broken) ways, and the run is not disturbed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lockstep.core import Path, Request, SamplingParams
from lockstep.harness.subject import LaboratorySubject
from lockstep.parity.hypothesis import Hypothesis, Reading
from lockstep.pipeline.reference import NativeReference


def renamed(requests: list[Request], prefix: str) -> list[Request]:
    return [replace(request, id=prefix + request.id) for request in requests]


@pytest.fixture
def lab(opened):
    with opened() as laboratory:
        laboratory.observe()
        yield laboratory


def test_it_can_do_all_that_an_audit_may_ask(lab) -> None:
    assert LaboratorySubject(lab).can == {"sample", "score", "update", "reset", "seeded"}


def test_it_says_what_the_engine_says_hooks_included(lab) -> None:
    subject = LaboratorySubject(lab)
    assert subject.state() == lab.statement()
    lab.hooks.statement.append(lambda said: replace(said, digest="forged"))
    assert subject.state().digest == "forged"


def test_equal_requests_give_equal_tokens_and_logprobs(lab, same_bits) -> None:
    subject = LaboratorySubject(lab)
    asked = lab.requests(9)
    first, again = subject.sample(asked), subject.sample(asked)
    assert [s.id for s in first] == [f"{r.id}/{i}" for r in asked for i in range(2)]
    for one, other in zip(first, again, strict=True):
        assert one.trainer is None
        assert np.array_equal(one.token_ids, other.token_ids)
        assert same_bits(one.sampler, other.sampler)


def test_samples_come_through_the_hooks_of_requests_and_transport(lab) -> None:
    lab.hooks.requests.append(lambda asked: renamed(asked, "asked-"))
    lab.hooks.transport.append(lambda samples: [replace(s, text="on the way") for s in samples])
    found = LaboratorySubject(lab).sample(lab.requests(9)[:1])
    assert [(s.id, s.text) for s in found] == [("asked-s9p0/0", "on the way"), ("asked-s9p0/1", "on the way")]


def test_its_prefill_gives_the_bits_of_decoding(lab, same_bits) -> None:
    subject = LaboratorySubject(lab)
    drawn = subject.sample(lab.requests(9))
    assert Path.DECODE in np.concatenate([np.asarray(s.path) for s in drawn])
    for sample, scored in zip(drawn, subject.score(drawn), strict=True):
        assert same_bits(sample.sampler, scored)


def test_its_prefill_divides_by_the_temperature_and_does_nothing_else(opened, same_bits) -> None:
    with opened(temperature=0.5, top_k=5, frequency_penalty=0.5) as lab:
        drawn = lab.observe().samples
        scored = LaboratorySubject(lab).score(drawn)
        reference = NativeReference(lab.network.model.arch, lab.history, dtype="float32")
        plain = [replace(s, params=SamplingParams(temperature=0.5), support=None) for s in drawn]
        for sample, one, honest, raw in zip(
            drawn, scored, reference.score(plain), reference.score(plain, Hypothesis(Reading("raw"))), strict=True
        ):
            assert same_bits(one, honest)
            assert not same_bits(one, sample.sampler) and not same_bits(one, raw)


def test_without_parameters_it_scores_at_temperature_one(lab) -> None:
    sample = LaboratorySubject(lab).sample(lab.requests(9))[0]
    reference = NativeReference(lab.network.model.arch, lab.history, dtype="float32")
    bare = replace(sample, params=None)
    assert np.array_equal(
        LaboratorySubject(lab).score([bare])[0], reference.score([bare], Hypothesis(Reading("raw")))[0]
    )


def test_an_update_installs_a_version_by_the_way_of_all_weights(lab) -> None:
    subject = LaboratorySubject(lab)
    lab.advance()
    lab.observe()
    sent = []
    lab.hooks.publish.append(lambda published: (sent.append(published.version.number), published)[1])
    subject.update(0)
    assert subject.state().number == 0
    subject.update(1)
    assert sent == [0, 1]
    assert subject.state().digest == lab.trainer.version.digest


def test_what_it_draws_after_an_update_is_of_those_weights(lab, same_bits) -> None:
    subject = LaboratorySubject(lab)
    asked = lab.requests(9)
    old = subject.sample(asked)
    lab.advance()
    new = subject.sample(asked)
    subject.update(0)
    for before, between, after in zip(old, new, subject.sample(asked), strict=True):
        assert same_bits(before.sampler, after.sampler)
        assert not same_bits(before.sampler, between.sampler)


def test_a_reset_makes_prompts_be_computed_anew(lab) -> None:
    subject = LaboratorySubject(lab)
    asked = lab.requests(1)[:1]
    assert [s.num_cached for s in subject.sample(renamed(asked, "a"))] == [32, 32]
    subject.reset()
    assert [s.num_cached for s in subject.sample(renamed(asked, "b"))] == [0, 0]


def test_a_look_in_between_does_not_change_what_the_run_draws(opened) -> None:
    seen = []
    for looking in (False, True):
        with opened() as lab:
            lab.observe()
            if looking:
                subject = LaboratorySubject(lab)
                subject.score(subject.sample(lab.requests(50)))
                subject.reset()
                subject.update(0)
            lab.advance()
            seen.append([(s.token_ids.tobytes(), s.sampler.tobytes()) for s in lab.observe().samples])
    assert seen[0] == seen[1]
