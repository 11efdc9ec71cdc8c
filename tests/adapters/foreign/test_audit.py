"""The passive audit: what counts is found, what the files lack is said, and neither is mistaken for the other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lockstep.adapters.foreign.audit import passive, stood_in
from lockstep.adapters.foreign.detection import FORMATS, read
from lockstep.adapters.foreign.gaps import Gaps
from lockstep.adapters.foreign.run import ForeignRun
from lockstep.core import Logprobs
from lockstep.errors import InputError
from lockstep.parity.evidence import Finding
from lockstep.parity.floor import Floor
from lockstep.parity.hypothesis import Hypothesis
from lockstep.parity.observation import Observation, Sample
from lockstep.parity.side import CannotAsk
from lockstep.trace import rollouts

IDS = np.arange(40, dtype=np.int32)
KEY = np.array([7, 11], np.uint64)


class Reference:
    """Scores a token by its id alone; nothing but the honest contract can be asked."""

    versions, names, parameters = (0,), (), ("head",)

    def score(self, samples: Sequence[Sample], hypothesis: Hypothesis) -> list[np.ndarray]:
        if hypothesis.flipped:
            raise CannotAsk("this reference assumes nothing")
        return [(-0.5 - sample.token_ids / 64).astype(np.float32) for sample in samples]


def noise(seed: int, count: int = 40, size: float = 1e-3) -> np.ndarray:
    """Differences of two honest computations, always the same for one seed."""
    return np.random.Generator(np.random.Philox(key=KEY, counter=seed)).normal(0, size, count)


FLOOR = Floor.of([noise(1000 + at) for at in range(40)])


def pair(name: str, difference: np.ndarray) -> Sample:
    trainer = -1 - IDS / 50
    return Sample(name, IDS[:3], IDS, (trainer - difference).astype(np.float32), trainer.astype(np.float32))


def run_of(*observations: Observation, exact: bool = False, ends: str = "") -> ForeignRun:
    """A run of these observations, which breaks off with an error if `ends` says one."""

    def reader(gaps: Gaps):
        gaps.add("line 9 is cut off")
        yield from observations
        if ends:
            raise InputError(ends)

    return ForeignRun("made here", Path("runs/x"), reader, exact=exact)


def clean(steps: int = 5) -> list[Observation]:
    return [Observation(step, [pair(f"{step}/{at}", noise(step * 8 + at)) for at in range(4)]) for step in range(steps)]


@pytest.mark.parametrize("name", [fmt.name for fmt in FORMATS])
def test_good_runs_of_every_format_show_no_fault(good, tmp_path: Path, name: str):
    run = read(good.run(name, tmp_path / "run"))
    report = passive(run)
    assert report.findings == ()
    assert report.stopped is None
    assert not report.failed
    assert report.coverage.samples > 0
    assert report.allows.keys() == run.allows.keys()
    assert json.dumps(report.plain())
    assert "\n".join(report.lines()).startswith(name)


def test_what_two_sides_differ_by_is_not_judged_without_a_floor(good, tmp_path: Path):
    report = passive(read(good.run("prime-rl token exports", tmp_path / "run")))
    assert report.judged == 0
    assert set(report.differences) == {9, 10}
    figures = report.differences[9]
    assert (figures["tokens"], figures["differing"], figures["max"]) == (20.0, 8.0, 0.25)
    assert figures["mean_abs_log_ratio_new_old"] == figures["mean"] == pytest.approx(8 * 0.25 / 20)
    assert any("without a noise floor nobody can say if that is much" in line for line in report.lines())


def test_noise_within_the_floor_is_parity():
    report = passive(run_of(*clean(20)), floor=FLOOR)
    assert (report.judged, report.findings) == (20, ())
    assert not any("without a noise floor" in line for line in report.lines())


def test_more_than_the_floor_is_undetermined_without_a_reference():
    broken = Observation(9, [pair(f"9/{at}", noise(500 + at) + 0.2) for at in range(4)])
    report = passive(run_of(*clean(), broken), floor=FLOOR)
    assert [(finding.step, finding.status) for finding in report.findings] == [(9, "undetermined")]
    assert report.failed
    assert report.skipped["readings"] == "reference: none was given"
    assert any(line.startswith("step 9: undetermined: 160 of 160 tokens differ") for line in report.lines())


def test_an_exact_run_needs_no_floor():
    same = [Observation(step, [replace(pair(f"{step}", np.zeros(40)), token_ids=IDS + step)]) for step in range(3)]
    assert passive(run_of(*same, exact=True)).findings == ()
    moved = passive(run_of(*same, Observation(7, [pair("7", noise(1))]), exact=True))
    assert [finding.step for finding in moved.findings] == [7]
    assert moved.judged == 4


def test_a_bit_of_our_own_rollouts(good, tmp_path: Path):
    record = good.lockstep_record(1)
    values = record.trainer_logprobs.values.copy()
    values.view(np.int32)[1] ^= 1
    moved = replace(record, trainer_logprobs=Logprobs(values, record.trainer_logprobs.contract))
    rollouts.write(tmp_path / "r.parquet", [moved])
    report = passive(read(tmp_path / "r.parquet"))
    assert [finding.status for finding in report.findings] == ["undetermined"]
    assert report.differences[1]["differing"] == 1


def test_a_batch_that_was_served_twice_is_found_without_a_floor():
    first, second = clean(2)
    report = passive(run_of(first, second, replace(first, step=9)))
    assert [(finding.step, finding.code) for finding in report.findings] == [(9, "OBJ04")]
    assert report.findings[0].evidence[0].certain


def test_tables_of_texts_that_hold_the_same_rows_are_no_repetition(good, tmp_path: Path):
    """TRL writes its last generated batch again at every logged step."""
    path = good.run("TRL completions", tmp_path / "run")
    folder = path / "completions"
    (folder / "completions_00020.parquet").write_bytes((folder / "completions_00010.parquet").read_bytes())
    assert passive(read(path)).findings == ()


@pytest.mark.parametrize("broken", [{"sampler": np.zeros(3, np.float32)}, {"trainer": np.full(40, np.nan, np.float32)}])
def test_a_pair_that_cannot_be_subtracted_counts_without_a_floor(broken: dict[str, Any]):
    samples = [pair("a", noise(91)), replace(pair("b", noise(92)), **broken)]
    report = passive(run_of(*clean(2), Observation(3, samples)))
    assert report.broken == {3: 1}
    assert report.failed
    contradictions = [finding.evidence[0].certain for finding in report.findings]
    assert all(contradictions)  # what the other pair differs by is not judged
    assert report.coverage.comparable == 9
    assert "step 3: 1 samples have a series of another length than their tokens, or not all finite" in list(
        report.lines()
    )
    assert report.plain()["broken"] == {"3": 1}


def test_a_side_that_the_file_does_not_have_is_no_loss():
    lone = [replace(sample, trainer=None) for sample in clean(1)[0].samples]
    for floor in (None, FLOOR):
        report = passive(run_of(Observation(1, lone)), floor=floor)
        assert (report.findings, report.judged, report.differences) == ((), 0, {})


def test_a_rollout_that_was_not_scored_is_no_mismatch():
    samples = clean(1)[0].samples
    mixed = [*samples[:2], replace(samples[2], trainer=None), replace(samples[3], sampler=None)]
    report = passive(run_of(Observation(1, mixed)), floor=FLOOR)
    assert (report.findings, report.judged) == ((), 1)
    exact = [replace(s, trainer=s.sampler) for s in samples[:2]]
    assert not passive(run_of(Observation(1, [*exact, *mixed[2:]]), exact=True)).failed


def test_a_pair_without_tokens_is_none():
    empty = Sample("e", IDS[:2], IDS[:0], np.empty(0, np.float32), np.empty(0, np.float32))
    for observation in (
        Observation(1, [empty]),
        Observation(1, [replace(empty, trainer=None)]),
        Observation(1, [empty, *clean(1)[0].samples]),
    ):
        assert passive(run_of(observation), floor=FLOOR).findings == ()


def test_a_reference_stands_in_for_the_trainer(good, tmp_path: Path):
    scores = Reference().score([Sample("", IDS, IDS)], Hypothesis())[0]
    honest = Sample("a", IDS[:2], IDS, (scores + noise(3)).astype(np.float32))
    off = replace(honest, sampler=scores + np.float32(0.3))
    report = passive(run_of(Observation(1, [honest] * 4)), reference=Reference(), floor=FLOOR)
    assert (report.findings, report.judged) == ((), 1)
    report = passive(run_of(Observation(1, [off] * 4)), reference=Reference(), floor=FLOOR)
    assert [finding.status for finding in report.findings] == ["undetermined"]
    assert report.coverage.pairs == 0  # coverage is of the file
    responses = read(good.run("OpenAI-compatible responses", tmp_path / "run"))
    assert passive(responses, reference=Reference()).differences[1]["tokens"] == 6


def test_a_reference_stands_in_only_where_no_trainer_speaks():
    class Refuses(Reference):
        def score(self, samples: Sequence[Sample], hypothesis: Hypothesis) -> list[np.ndarray]:
            raise CannotAsk("no such version")

    (observation,) = clean(1)
    lone = replace(observation, samples=[replace(s, trainer=None) for s in observation.samples])
    assert stood_in(observation, Reference()) is observation
    assert stood_in(lone, None) is lone
    assert stood_in(lone, Refuses()) is lone
    short = replace(lone, samples=[replace(lone.samples[0], sampler=np.zeros(3, np.float32))])
    assert stood_in(short, Reference()) is short
    assert all(sample.comparable for sample in stood_in(lone, Reference()).samples)


def test_damage_ends_the_reading_and_keeps_what_was_before(good, tmp_path: Path):
    path = good.run("verl rollouts", tmp_path / "run")
    rows = (path / "10.jsonl").read_text().splitlines()
    (path / "10.jsonl").write_text("\n".join([rows[0], "x", rows[2], ""]))
    report = passive(read(path))
    assert report.coverage.steps == 1
    assert report.stopped is not None
    assert "10.jsonl (line 2)" in report.stopped
    assert report.failed
    assert list(report.lines())[-1].startswith("stopped after 1 steps: ")
    assert report.plain()["stopped"] == report.stopped


def test_gaps_and_what_was_left_out_are_said():
    run = replace(run_of(*clean(1)), left_out=("x.parquet is damaged",))
    passive(run)
    report = passive(run)  # a second pass does not count twice
    assert report.gaps == ("x.parquet is damaged", "line 9 is cut off")
    assert "not read: line 9 is cut off" in list(report.lines())
    assert passive(run_of(*clean(1), ends="broken")).stopped == "broken"


def test_what_is_lost_is_counted_apart_from_what_is_only_not_read(good, tmp_path: Path):
    path = good.run("verl rollouts", tmp_path / "run")
    assert passive(read(path)).damaged == 0
    (path / "10.jsonl").write_bytes((path / "10.jsonl").read_bytes()[:-9])
    report = passive(read(path))
    assert (report.damaged, report.coverage.steps, report.coverage.samples) == (1, 2, 5)
    assert report.plain()["damaged"] == 1
    assert passive(replace(run_of(*clean(1)), left_out=("x", "y"), damaged=1)).damaged == 1


def test_a_run_without_samples():
    report = passive(run_of())
    assert {permission.answer for permission in report.allows.values()} == {"no"}
    assert not report.failed


FLOATS = st.lists(st.floats(width=32), max_size=4).map(lambda values: np.array(values, np.float32))
SAMPLES = st.builds(
    Sample,
    id=st.sampled_from("ab"),
    prompt_ids=st.lists(st.integers(0, 9), max_size=3).map(lambda v: np.array(v, np.int32)),
    token_ids=st.lists(st.integers(0, 9), max_size=3).map(lambda v: np.array(v, np.int32)),
    sampler=st.none() | FLOATS,
    trainer=st.none() | FLOATS,
    reference=st.none() | FLOATS,
    group=st.sampled_from(["", "g"]),
    finish_reason=st.sampled_from(["", "stop"]),
    text=st.none() | st.just("x"),
    ratio=st.none() | st.floats(width=32),
)
METRICS = st.dictionaries(st.sampled_from(["ratio_new_old", "kl_new_old", "reward"]), st.floats(), max_size=3)


INFINITE = Sample("a", IDS[:1], IDS[:1], np.array([np.inf, -np.inf], np.float32))

FAR = Sample("a", IDS[:1], IDS[:3], np.zeros(3, np.float32), np.array([0, 0, 710], np.float32), ratio=0.0)


@example(steps=[([FAR], {})], exact=False)
@example(steps=[([INFINITE], {})], exact=False)
@given(steps=st.lists(st.tuples(st.lists(SAMPLES, max_size=4), METRICS), max_size=3), exact=st.booleans())
def test_whatever_readers_give_is_looked_at(steps: list[tuple[list[Sample], dict[str, float]]], exact: bool):
    observations = [Observation(at, samples, metrics=metrics) for at, (samples, metrics) in enumerate(steps)]
    for floor in (None, FLOOR):
        report = passive(run_of(*observations, exact=exact), floor=floor)
        assert report.coverage.steps == len(observations)
        assert all(isinstance(finding, Finding) for finding in report.findings)
        assert list(report.lines())
        assert report.plain()["coverage"]["samples"] == sum(len(samples) for samples, _ in steps)
