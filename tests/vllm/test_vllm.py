"""The real vLLM (its CPU build, in its own environment) with SmolLM2, audited: what it does by default has a name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest

from lockstep import models
from lockstep.adapters.engines.audit import Audit
from lockstep.adapters.engines.client import Client
from lockstep.adapters.engines.native import NativeTrainer
from lockstep.adapters.engines.process import WorkerFailed
from lockstep.adapters.engines.publisher import Publisher
from lockstep.adapters.engines.transformers_scorer import Transformers
from lockstep.adapters.engines.vllm_process import Vllm
from lockstep.adapters.engines.workload import Workload
from lockstep.core import SamplingParams
from lockstep.parity.catalogue import CATALOGUE

pytestmark = [pytest.mark.vllm, pytest.mark.model]

PARAMS = SamplingParams(max_tokens=24, n=4, ignore_eos=True)
EAGER = {"enforce_eager": True}
PROCESSED = {**EAGER, "logprobs_mode": "processed_logprobs"}


@pytest.fixture(scope="module")
def model():
    return models.load("smollm2")


def started(model, folder, **settings) -> Iterator[tuple[Vllm, Publisher]]:
    publisher = Publisher(model, folder)
    with Vllm(publisher, settings, folder / "vllm.log", print) as engine:
        yield engine, publisher


@pytest.fixture(scope="class")
def default(model, tmp_path_factory):
    yield from started(model, tmp_path_factory.mktemp("default"))


@pytest.fixture(scope="class")
def processed(model, tmp_path_factory):
    yield from started(model, tmp_path_factory.mktemp("processed"), **PROCESSED)


@pytest.fixture(scope="class")
def exact(model, tmp_path_factory):
    settings = {**PROCESSED, "dtype": "float32", "prefix_cache": "salt", "weights": "repack"}
    yield from started(model, tmp_path_factory.mktemp("exact"), **settings)


def audited(engine, scorer, publisher, **fields) -> Audit:
    steps = fields.pop("steps", 1)
    audit = Audit(engine, scorer, publisher, Workload(replace(PARAMS, **fields), steps=steps))
    for finding in audit.run():
        print(finding.step, finding.status, finding.code, finding.figures, finding.evidence)
    breakdown = audit.report("vllm", "scorer", {}).breakdown
    assert breakdown is not None
    *parts, total = breakdown.rows()
    assert sum(row["units"] for row in parts) == total["units"]
    return audit


def anew(processed, model, tmp_path, client: Client) -> tuple[Vllm, Publisher]:
    """The running engine with the first weights, an empty cache and another client around it."""
    engine, _ = processed
    publisher = Publisher(model, tmp_path)
    engine._publisher, engine._client = publisher, Client("repack")
    engine.update(0)
    engine._client = client
    return engine, publisher


class TestDefaults:
    """As it comes."""

    def test_its_defaults_at_another_temperature_are_sem01_and_the_setting_is_named(self, default):
        engine, publisher = default
        audit = audited(engine, NativeTrainer(publisher, {}), publisher, temperature=0.7)
        assert engine.state().settings["logprobs_mode"] == "raw_logprobs"
        assert audit.findings[-1].code == "SEM01"
        assert 'logprobs_mode="processed_logprobs"' in audit.report("vllm", "trainer", {}).verdict

    def test_its_defaults_at_temperature_one_are_in_parity(self, default):
        engine, publisher = default
        audit = audited(engine, NativeTrainer(publisher, {}), publisher)
        assert [finding.status for finding in audit.findings] == ["parity"]
        assert audit.findings[0].figures["differing"] > 0, "two implementations, within the measured floor"


class TestProcessed:
    """With processed logprobs."""

    def test_a_trainer_that_does_not_know_top_p_is_sem03(self, processed):
        engine, publisher = processed
        with Transformers(publisher, {}) as scorer:
            audit = audited(engine, scorer, publisher, temperature=0.7, top_p=0.8, n=2)
        assert audit.findings[-1].code == "SEM03"
        assert "top_p=1.0" in CATALOGUE["SEM03"].setting

    def test_a_lost_update_is_wgt01(self, processed, model, tmp_path):
        engine, publisher = anew(processed, model, tmp_path, Client(weights="lost"))
        audit = audited(engine, NativeTrainer(publisher, {}), publisher, steps=3)
        assert audit.findings[0].code is None and audit.findings[-1].code == "WGT01"
        assert "version 0" in audit.findings[-1].evidence[0].why


class TestExact:
    """Processed logprobs, a salt for each version, float32."""

    def test_processed_logprobs_salt_and_float32_are_in_parity_through_updates(self, exact):
        engine, publisher = exact
        with ExitStack() as stack:
            scorer = stack.enter_context(NativeTrainer(publisher, {"dtype": "float32"}))
            audit = audited(engine, scorer, publisher, temperature=0.7, steps=3)
        assert [finding.status for finding in audit.findings] == ["parity"] * 3
        assert publisher.newest == 2
        for finding in audit.findings:
            assert finding.figures["max"] < 1e-3

    def test_its_own_reload_leaves_the_packed_head_of_a_tied_model_behind_and_that_is_wgt04(
        self, exact, model, tmp_path
    ):
        engine, publisher = anew(exact, model, tmp_path, Client("reload", "salt"))
        audit = audited(engine, NativeTrainer(publisher, {"dtype": "float32"}), publisher, steps=2)
        assert [finding.code for finding in audit.findings] == [None, "WGT04"]
        assert audit.findings[-1].evidence[0].explained > 0.999

    def test_a_prefix_cache_that_survives_a_real_update_is_cac01(self, exact, model, tmp_path):
        engine, publisher = anew(exact, model, tmp_path, Client("repack", "keep"))
        audit = audited(engine, NativeTrainer(publisher, {"dtype": "float32"}), publisher, steps=2)
        assert audit.observations[-1].samples[0].num_cached == 128, "vLLM says that it hit the cache"
        assert [finding.code for finding in audit.findings] == [None, "CAC01"]

    def test_prompt_scores_ignore_the_temperature(self, exact, model, tmp_path):
        engine, publisher = anew(exact, model, tmp_path, Client("repack", "salt"))
        requests = Workload(replace(PARAMS, temperature=0.7, n=1), prompts=2).requests(publisher.model.tokenizer, 9)
        samples = engine.sample(requests)
        plain = NativeTrainer(publisher, {"dtype": "float32"}).score(
            [replace(s, params=replace(s.params, temperature=1.0)) for s in samples]
        )
        for scores, values in zip(engine.score(samples), plain, strict=True):
            assert np.abs(scores - values).max() < 1e-3


def test_weights_that_cannot_be_loaded_end_it_with_its_last_words(model, tmp_path):
    publisher = Publisher(model, tmp_path)
    with (
        pytest.raises(WorkerFailed, match="worker \\(vllm\\)"),
        Vllm(publisher, {"no_such_argument": 1}, tmp_path / "vllm.log", print),
    ):
        pass
