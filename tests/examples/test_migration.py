"""The re-enacted migration: what four settings do, that they are found, and that a right engine is exactly right."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from examples.migration import __main__ as program
from examples.migration import causes, figure, training
from examples.migration.causes import Trials
from examples.migration.service import told
from examples.migration.settings import CAUSES, NAIVE, REFERENCE, changed, put_back
from examples.migration.training import Outcome, Training, train
from lockstep.core import Contract, Logprobs, Provenance, Rollout, SamplingParams, Span
from lockstep.engine import draw
from lockstep.errors import GateRefused
from lockstep.parity.catalogue import CATALOGUE
from lockstep.parity.qualify.trial import Trial
from lockstep.train.spans import check_spans

ALL = frozenset(CAUSES)
ARMS = {"reference": None, "naive": NAIVE, "mended": REFERENCE}


@pytest.fixture(scope="module")
def arms(short: Training, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Three steps of each arm."""
    folder = tmp_path_factory.mktemp("arms")
    return {name: train(short, settings, folder / name) for name, settings in ARMS.items()}


@pytest.mark.parametrize("name", ["reference", "mended"])
def test_a_right_engine_has_the_trainers_bits(arms, name: str) -> None:
    assert arms[name].mismatch == 0.0 == arms[name].mean
    assert [line["parity/frac_differing"] for line in arms[name].lines] == [0.0] * 3
    assert arms[name].tokens > 100


def test_the_naive_engine_does_not(arms) -> None:
    assert all(line["parity/max"] > 0.1 for line in arms["naive"].lines)
    assert all(line["mean_abs_log_ratio_new_old"] > 0.05 for line in arms["naive"].lines)
    assert arms["naive"].mean > 0.05


def test_mended_it_ends_with_the_weights_of_the_librarys_own_engine(arms) -> None:
    assert arms["mended"].digest == arms["reference"].digest != arms["naive"].digest
    varying = ("time/", "throughput/", "memory/")
    lines = [
        [{key: value for key, value in line.items() if not key.startswith(varying)} for line in arms[name].lines]
        for name in ("reference", "mended")
    ]
    assert lines[0] == lines[1]


def test_new_weights_find_requests_in_flight(arms) -> None:
    """Otherwise neither the update mode nor the salt would have anything to go wrong with."""
    assert all(outcome.lines[-1]["lag"] > 0 for outcome in arms.values())


def test_nothing_stays_broken(arms) -> None:
    assert draw.sample.__module__ == "lockstep.kernels.sampling"


def test_evaluations_are_by_an_engine_without_faults(arms) -> None:
    """Before the first step the weights are the same, so the answers are."""
    first = [outcome.evaluations[0] for outcome in arms.values()]
    assert first[0] == first[1] == first[2]


@pytest.mark.parametrize("name", sorted(ALL))
def test_each_setting_alone_breaks_parity(short: Training, name: str, tmp_path: Path) -> None:
    found = train(short, put_back(ALL - {name}), tmp_path)
    assert found.mismatch > 0.0
    by_step = [line["parity/max"] for line in found.lines]
    at_once = name in ("logprobs_mode", "head_dtype")
    assert (by_step[0] > 0) == at_once, "what is about keys needs an update first"
    assert by_step[1] > 0


def test_the_four_settings_are_the_restoring_set(short: Training, tmp_path: Path) -> None:
    """Real trainings, without the auditor, which would take most of the time."""
    trials = Trials(tmp_path / "trials", replace(short, steps=2))
    found = causes.qualify(trials)
    assert found.restoration.kept == ALL
    assert found.restoration.minimal and found.restoration.smallest == "counted"
    assert program.complete(found)
    assert trials.outcomes[ALL].mismatch == 0.0
    assert all(outcome.mismatch > 0 for kept, outcome in trials.outcomes.items() if kept != ALL)


def test_with_the_gate_closed_nothing_is_trained_on(short: Training, tmp_path: Path) -> None:
    said = causes.refused(tmp_path, short)
    assert "parity gate (step 1)" in said and "Nothing was changed" in said
    with pytest.raises(GateRefused):
        train(replace(short, gated=True), NAIVE, tmp_path / "again")


def test_a_right_engine_passes_the_gate(short: Training, tmp_path: Path) -> None:
    assert train(replace(short, gated=True, steps=1), REFERENCE, tmp_path).mismatch == 0.0


def test_the_auditor_names_raw_logprobs_from_the_numbers_alone(short: Training, tmp_path: Path) -> None:
    found = train(replace(short, audit=True, steps=1), put_back(ALL - {"logprobs_mode"}), tmp_path)
    assert causes.cause(found) == "SEM01"
    assert len(found.findings) == 1


def test_the_auditor_says_nothing_of_a_right_engine(short: Training, tmp_path: Path) -> None:
    found = train(replace(short, audit=True), REFERENCE, tmp_path)
    assert found.findings == [] and causes.cause(found) is None


def test_the_same_seed_is_the_same_training(short: Training, tmp_path: Path, arms) -> None:
    assert train(short, NAIVE, tmp_path).digest == arms["naive"].digest


def test_another_seed_is_another(short: Training, tmp_path: Path, arms) -> None:
    assert train(replace(short, seed=1, steps=1), NAIVE, tmp_path).digest != arms["naive"].digest


def test_the_settings_are_four_and_each_has_a_fault() -> None:
    assert {difference.name for difference in changed()} == ALL == set(asdict(REFERENCE))
    assert all(code in CATALOGUE for code in CAUSES.values())


def test_to_put_back_everything_is_the_reference_and_nothing_the_naive_engine() -> None:
    assert put_back(ALL) == REFERENCE
    assert put_back(()) == NAIVE
    assert asdict(put_back({"cache_salt"})) == asdict(NAIVE) | {"cache_salt": "per_version"}


def _rollout(versions: list[int], spans: tuple[Span, ...] = ()) -> Rollout:
    count = len(versions)
    params = SamplingParams(max_tokens=count)
    contract = Contract.of(params, "float32", tuple(sorted(set(versions))))
    return Rollout(
        id="a/0",
        task_id="a",
        prompt_ids=np.arange(3, 8, dtype=np.int32),
        token_ids=np.arange(3, 3 + count, dtype=np.int32),
        text="",
        finish_reason="length",
        params=params,
        sampler_logprobs=Logprobs(np.full(count, -1.0, np.float32), contract),
        provenance=Provenance(np.array(versions, np.int32), np.zeros(count, np.uint8), np.zeros(count, bool), spans),
    )


@pytest.mark.parametrize("versions", [[4], [4, 4, 4], [4, 5], [4, 4, 6, 6, 7], [1, 2, 3, 4]])
def test_what_is_told_of_keys_can_be_true(versions: list[int]) -> None:
    """The spans that a trainer has to believe are ones that it can replay."""
    said = told(_rollout(versions, (Span(0, 4, 1), Span(4, 4 + len(versions), 2))))
    check_spans(said)
    assert [span.version for span in said.provenance.spans] == sorted(set(versions))
    assert all(span.start == 0 for span in said.provenance.spans)


def test_an_aborted_rollout_without_a_token_is_left_alone() -> None:
    nothing = replace(_rollout([4]), provenance=Provenance(*(np.empty(0, t) for t in (np.int32, np.uint8, bool))))
    assert told(nothing) is nothing


def test_the_words_are_written_once(tmp_path: Path, short: Training) -> None:
    first = training.configuration(short, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "words.jsonl").read_text().splitlines()]
    assert len(rows) == 512
    assert all(row["prompt"].removeprefix(training.PREAMBLE)[:3] == row["answer"][::-1] for row in rows)
    assert training.configuration(short, tmp_path) == first


def test_prompts_share_more_than_a_page_of_the_cache(tmp_path: Path, short: Training) -> None:
    assert len(training.PREAMBLE) > 2 * training.configuration(short, tmp_path).engine.page_size


def _fake(outcomes: dict[frozenset[str], bool | None]):
    class Told(Trials):
        def trial(self, kept):
            parity = outcomes.get(frozenset(kept), False)
            return Trial(parity, {"mean": 0.0 if parity else 1.0, "audit": "parity"})

        def baseline(self):
            return Trial(True, {"mean": 0.0, "audit": "parity"})

    return Told


def test_a_smaller_restoring_set_is_not_complete(tmp_path: Path) -> None:
    lucky = dict.fromkeys((ALL, ALL - {"cache_salt"}), True)
    found = causes.qualify(_fake(lucky)(tmp_path))
    assert found.restoration.kept == ALL - {"cache_salt"}
    assert not program.complete(found)


def test_the_record_has_every_number_and_is_json(arms, tmp_path: Path) -> None:
    found = causes.qualify(_fake({ALL: True})(tmp_path))
    names = dict(CAUSES)
    told_ = json.loads(json.dumps(program.record(arms, found, names, "refused")))
    assert set(told_["arms"]) == set(ARMS)
    assert all(len(arm["steps"]) == 3 for arm in told_["arms"].values())
    assert told_["arms"]["naive"]["mismatch_max"] > 0 == told_["arms"]["mended"]["mismatch_max"]
    assert set(told_["qualification"]["restored_by"]) == ALL
    line = program.last_line(arms, found, names, 1.0)
    assert "restored by 4 settings" in line and "4 of 4 named" in line and "bit for bit" in line


def test_the_last_line_says_when_an_arm_ends_elsewhere(arms, tmp_path: Path) -> None:
    found = causes.qualify(_fake({ALL: True})(tmp_path))
    other = {**arms, "mended": arms["naive"]}
    assert "ELSEWHERE" in program.last_line(other, found, dict.fromkeys(CAUSES), 1.0)


def test_the_figure_is_one_file_and_draws_every_arm(arms, tmp_path: Path) -> None:
    lines = {name: outcome.lines for name, outcome in arms.items()}
    figure.arms(tmp_path / "a.svg", lines)
    figure.arms(tmp_path / "b.svg", lines)
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text(), "equal numbers, equal bytes"
    assert all(figure.COLOURS[name] in text for name in ARMS)
    assert "<image" not in text and 'xlink:href="http' not in text
