"""Qualification of engines: scripted sides for every turn that it can take, and Lockstep's own engine for real."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lockstep import models
from lockstep.adapters.engines import qualify
from lockstep.adapters.engines.process import Program, Worker, WorkerFailed
from lockstep.adapters.engines.qualify import MOST_FAILURES, Qualifier
from lockstep.adapters.engines.spec import Spec, parse
from lockstep.adapters.engines.workload import Workload
from lockstep.core import SamplingParams
from lockstep.errors import InputError, Interrupted, LockstepError, StageError
from lockstep.models import Model, tiny
from lockstep.parity.evidence import Evidence, Finding
from lockstep.parity.observation import Observation, Sample, Statement
from lockstep.parity.qualify.qualification import verdict
from lockstep.parity.qualify.restoration import Restoration
from lockstep.parity.qualify.trial import Record, Trial

OLD = "engine:m,a=0,b=0,c=0"
NEW = "engine:m,a=1,b=1,c=1"
PARITY = ("parity", 0.0)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tiny.build_random(tmp_path_factory.mktemp("models") / "m", tiny.TINY)
    return models.load(str(path))


@dataclass
class Side:
    """What `opened` gives: a spec that says it can draw, and remembers when it was closed."""

    spec: Spec
    stage: Stage

    @property
    def can(self) -> frozenset[str]:
        return frozenset({"score"} if self.spec.kind == "trainer" else {"sample"})

    def state(self) -> Statement:
        return Statement(self.spec.kind, {**self.stage.stated, **self.spec.settings})


@dataclass
class Stage:
    """A world in which audits end as a script says. `outcome(settings, temperature, step)`: a status and a mean."""

    outcome: Callable[[dict[str, Any], float, int], tuple[str, float]] = lambda *_: PARITY
    stated: dict[str, object] = field(default_factory=dict)
    tokens: int = 10
    opened: list[str] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    open_now: int = 0
    said: list[str] = field(default_factory=list)

    def open(self, spec: Spec, publisher: object, stack: Any, folder: Path, announce: object) -> Side:
        self.opened.append(str(spec))
        self.folders.append(folder)
        self.open_now += 1
        stack.callback(self._close)
        return Side(spec, self)

    def _close(self) -> None:
        self.open_now -= 1

    def audit(self, engine: Side, scorer: Side, publisher: object, workload: Workload) -> Any:
        return _Audit(self, engine, workload)


@dataclass
class _Audit:
    stage: Stage
    engine: Side
    workload: Workload
    observations: list[Observation] = field(default_factory=list)

    def run(self) -> Iterator[Finding]:
        for step in range(1, self.workload.steps + 1):
            settings = dict(self.engine.spec.settings)
            status, mean = self.stage.outcome(settings, self.workload.params.temperature, step)
            self.observations.append(Observation(step, [_sample("far", 5 * mean), _sample("near", mean)]))
            tokens = self.stage.tokens
            figures = {"tokens": tokens, "differing": tokens * bool(mean), "mean": mean, "max": 3 * mean}
            evidence = (Evidence("WGT01", "because"),) if status == "fault" else ()
            finding = Finding(status, step, evidence, figures if tokens else {"tokens": 0.0, "mean": float("nan")})  # type: ignore[arg-type]
            yield finding
            if finding.status != "parity":
                return


def _sample(name: str, off: float) -> Sample:
    series = np.full(4, -1.0, np.float32)
    ids = np.arange(4, dtype=np.int32)
    return Sample(name, ids[:3], ids, sampler=series + np.float32(off), trainer=series)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    made = Stage()
    monkeypatch.setattr(qualify, "opened", made.open)
    monkeypatch.setattr(qualify, "Audit", made.audit)
    return made


@pytest.fixture
def qualifier(model: Model, stage: Stage, tmp_path: Path) -> Callable[..., Qualifier]:
    def make(old: str = OLD, new: str = NEW, scorer: str = "", temperatures=(0.7, 1.0), steps: int = 2) -> Qualifier:
        loads = [
            Workload(SamplingParams(temperature=t, max_tokens=4, n=1, ignore_eos=True), 1, steps, floor=1)
            for t in temperatures
        ]
        scored = parse(scorer) if scorer else None
        return Qualifier((parse(old), parse(new)), scored, (model, model), loads, tmp_path, stage.said.append)

    return make


def run(one: Qualifier, known: tuple[Record, ...] = ()) -> tuple[Restoration, list[Record]]:
    seen: list[Record] = []
    return one.run(seen.append, known), seen


def needs(*names: str) -> Callable[..., tuple[str, float]]:
    """Parity when these are at their old values; the step after the first weights shows it."""

    def outcome(settings: dict[str, Any], temperature: float, step: int) -> tuple[str, float]:
        wrong = [name for name in names if settings[name]]
        return ("fault", 0.1 * len(wrong)) if wrong and step > 1 else ("parity", 0.001)

    return outcome


# -- searches


def test_an_engine_that_agrees_needs_two_trials(qualifier, stage: Stage) -> None:
    found, seen = run(qualifier())
    assert found.status == "parity"
    assert [record.kept for record in seen] == [None, frozenset()]


@pytest.mark.parametrize("names", [("a",), ("b",), ("a", "c"), ("a", "b", "c")])
def test_the_settings_that_matter_are_found(qualifier, stage: Stage, names: tuple[str, ...]) -> None:
    stage.outcome = needs(*names)
    found, _ = run(qualifier())
    assert found.status == "restored"
    assert found.kept == set(names)
    assert found.minimal


def test_a_cause_outside_of_the_settings_is_said(qualifier, stage: Stage) -> None:
    later = "trial 2: NEW, put back: no setting"
    stage.outcome = lambda *_: ("fault", 1.0) if later in stage.said else PARITY
    found, seen = run(qualifier())
    assert found.status == "outside"
    assert [record.kept for record in seen] == [None, frozenset(), frozenset("abc")]


def test_a_baseline_that_differs_is_refused(qualifier, stage: Stage) -> None:
    stage.outcome = lambda *_: ("fault", 1.0)
    found, seen = run(qualifier())
    assert found.status == "refused"
    assert [record.kept for record in seen] == [None]


def test_engines_are_opened_with_the_settings_put_back_and_closed_again(qualifier, stage: Stage) -> None:
    stage.outcome = needs("a")
    run(qualifier(scorer="trainer:m"))
    engines = [word for word in stage.opened if word.startswith("engine")]
    assert engines[:4] == [OLD, NEW, OLD, NEW]  # asked for their settings, then baseline and NEW as it is
    assert OLD in engines[4:]  # everything put back
    assert "engine:m,a=0,b=1,c=1" in engines
    assert stage.open_now == 0
    assert len(set(stage.folders)) == len(stage.folders), "no log is written over"


def test_the_scorer_is_the_same_in_every_trial(qualifier, stage: Stage) -> None:
    stage.outcome = needs("a")
    run(qualifier(scorer="trainer:m,dtype=float32"))
    others = {word for word in stage.opened if not word.startswith("engine")}
    assert others == {"trainer:m,dtype=float32"}


@pytest.mark.parametrize(
    ("dtype", "word"), [("float32", "trainer:m,dtype=float32"), ("bfloat16", "trainer:m"), (None, "trainer:m")]
)
def test_the_scorer_is_by_default_the_trainer_in_the_dtype_of_old(qualifier, stage, dtype, word) -> None:
    stage.stated = {"dtype": dtype} if dtype else {}
    one = qualifier()
    run(one)
    assert str(one.scorer) == word


# -- outcomes


def test_temperatures_are_run_one_after_the_other_until_one_differs(qualifier, stage: Stage) -> None:
    ran: list[tuple[float, int]] = []

    def outcome(settings: dict[str, Any], temperature: float, step: int) -> tuple[str, float]:
        if settings["a"]:
            ran.append((temperature, step))
        return ("fault", 0.1) if settings["a"] and (temperature, step) == (1.0, 1) else ("parity", 0.01)

    stage.outcome = outcome
    one = qualifier(temperatures=(0.7, 1.0, 1.3))
    _, seen = run(one)
    assert ran[:3] == [(0.7, 1), (0.7, 2), (1.0, 1)]
    figures = seen[1].trial.figures
    assert (figures["temperature"], figures["step"], figures["cause"]) == (1.0, 1, "WGT01")
    assert one.failing is not None
    assert (one.failing.workload, one.failing.step) == (1, 1)


def test_figures_are_means_over_all_tokens(qualifier, stage: Stage) -> None:
    stage.outcome = lambda settings, temperature, step: ("parity", 0.01 * step)
    _, seen = run(qualifier())
    figures = dict(seen[0].trial.figures)
    assert figures["mean"] == pytest.approx(0.015)
    assert figures["max"] == pytest.approx(0.06)
    assert (figures["tokens"], figures["differing"]) == (40, 40)
    assert isinstance(figures["seconds"], float)


def test_something_that_no_cause_explains_is_a_difference(qualifier, stage: Stage) -> None:
    stage.outcome = lambda settings, *_: ("undetermined", 0.2) if settings["b"] else ("parity", 0.001)
    found, seen = run(qualifier())
    assert found.kept == {"b"}
    assert seen[1].trial.figures["cause"] == "no cause explains it"


def test_no_token_compared_is_no_answer(qualifier, stage: Stage) -> None:
    stage.tokens = 0
    found, seen = run(qualifier())
    assert found.status == "refused"
    assert seen[0].trial.parity is None
    assert seen[0].trial.figures["tokens"] == 0


def test_if_every_bit_of_old_is_the_scorers_those_of_new_must_be(qualifier, stage: Stage) -> None:
    stage.outcome = lambda settings, *_: ("parity", 1e-6 if settings["c"] else 0.0)
    one = qualifier()
    found, seen = run(one)
    assert one.exact
    assert found.kept == {"c"}
    assert seen[1].trial.figures["cause"] == "bits differ"
    assert one.qualification(found, {}, {}).facts["judged by"].startswith("every bit")


def test_otherwise_what_is_within_the_floor_is_parity(qualifier, stage: Stage) -> None:
    stage.outcome = lambda settings, *_: ("parity", 1e-6 if settings["c"] else 1e-9)
    one = qualifier()
    found, _ = run(one)
    assert not one.exact
    assert found.status == "parity"
    assert one.qualification(found, {}, {}).facts["judged by"].startswith("noise floor")


@pytest.mark.parametrize(("differing", "exact"), [(0, True), (3, False)])
def test_a_baseline_from_a_log_decides_that_too(qualifier, stage: Stage, differing: int, exact: bool) -> None:
    stage.outcome = lambda settings, *_: ("parity", 1e-6 if settings["c"] else 0.0)
    one = qualifier()
    found, _ = run(one, (Record(None, "baseline", Trial(True, {"differing": differing})),))
    assert one.exact is exact
    assert found.status == ("restored" if exact else "parity")


def test_the_failing_case_is_the_worst_completion_of_new_as_it_is(qualifier, stage: Stage) -> None:
    stage.outcome = needs("a", "b")
    one = qualifier()
    run(one)
    assert one.failing is not None
    worst = one.failing.completion
    assert worst.id == "far"
    assert worst.mean == pytest.approx(5 * 0.2, rel=1e-5)
    assert one.failing.step == 2
    assert worst.token_ids.tolist() == [0, 1, 2, 3]
    assert worst.old_logprobs.tolist() == [-1.0] * 4


def test_without_a_pair_of_series_there_is_no_failing_case() -> None:
    lone = replace(_sample("lone", 1.0), trainer=None)
    broken = replace(_sample("broken", 1.0), sampler=np.full(4, np.nan, np.float32))
    assert qualify._worst(Observation(1, [lone, broken])) is None


# -- sides that fail


def _fails(error: BaseException, when: Callable[[dict[str, Any]], bool]) -> Callable[..., tuple[str, float]]:
    def outcome(settings: dict[str, Any], *_: object) -> tuple[str, float]:
        if when(settings):
            raise error
        return ("fault", 0.1) if settings["a"] else PARITY

    return outcome


def test_a_side_that_fails_gives_no_answer_and_is_told_of(qualifier, stage: Stage) -> None:
    wanted = {"a": 0, "b": 1, "c": 1}
    stage.outcome = _fails(StageError("worker (vllm): it must answer in time"), lambda settings: settings == wanted)
    one = qualifier()
    found, seen = run(one)
    assert one.failures == ["worker (vllm): it must answer in time"]
    failed = next(record.trial for record in seen if record.kept == {"a"})
    assert failed.parity is None
    assert failed.figures["error"] == "worker (vllm): it must answer in time"
    assert found.status == "restored"
    assert "a" in found.kept and len(found.kept) == 2, "what gave no answer is not taken for parity"
    assert "  failed: worker (vllm): it must answer in time" in stage.said


def test_a_baseline_that_fails_is_refused_and_not_guessed(qualifier, stage: Stage) -> None:
    stage.outcome = _fails(StageError("gone"), lambda _: True)
    one = qualifier()
    found, _ = run(one)
    assert found.status == "refused"
    assert "could not be compared with itself" in verdict(one.qualification(found, {}, {}))


def test_too_many_failures_end_the_search(qualifier, stage: Stage) -> None:
    stage.outcome = _fails(
        StageError("gone"), lambda settings: settings not in (parse(OLD).settings, parse(NEW).settings)
    )
    one, seen = qualifier(), []
    with pytest.raises(StageError, match=r"engines must answer - got 3 failed trials.*The last failure was: gone"):
        one.run(seen.append, ())
    assert len(one.failures) == MOST_FAILURES
    assert [record.kept for record in seen[:3]] == [None, frozenset(), frozenset("abc")]
    assert stage.open_now == 0


@pytest.mark.parametrize("error", [Interrupted("stopped"), KeyboardInterrupt()])
def test_an_interruption_ends_it_at_once(qualifier, stage: Stage, error: BaseException) -> None:
    stage.outcome = _fails(error, lambda settings: bool(settings["a"]))
    one, seen = qualifier(), []
    with pytest.raises(type(error)):
        one.run(seen.append, ())
    assert [record.kept for record in seen] == [None]
    assert one.failures == []
    assert stage.open_now == 0


def test_a_mistake_of_ours_is_no_answer_of_theirs(qualifier, stage: Stage) -> None:
    stage.outcome = _fails(AssertionError("ours"), lambda _: True)
    with pytest.raises(AssertionError, match="ours"):
        run(qualifier())


@pytest.mark.parametrize("scorer", ["transformers:m", "openai:http://x"])
def test_whatever_other_software_raises_is_its_failure(qualifier, stage: Stage, scorer: str) -> None:
    stage.outcome = _fails(OSError("no such tensor"), lambda settings: bool(settings["a"]))
    one = qualifier(scorer=scorer)
    found, seen = run(one)
    assert found.status == "undetermined"
    assert seen[-1].trial.figures["error"] == f"engine ({scorer}): raised OSError - no such tensor"


def test_other_software_that_does_not_open_is_named(qualifier, stage: Stage, monkeypatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(qualify, "opened", broken)
    with pytest.raises(StageError, match=r"engine \(vllm:m\): raised RuntimeError - no memory"):
        run(qualifier(old="vllm:m", new="vllm:m"))


def test_a_process_that_hangs_is_a_failed_trial(qualifier, stage: Stage, scripted, tmp_path: Path) -> None:
    hanging: Program = scripted('print(json.dumps({"versions": {}}), flush=True); time.sleep(60)', limit=0.5)

    def outcome(settings: dict[str, Any], *_: object) -> tuple[str, float]:
        if settings["a"]:
            with Worker(hanging, tmp_path / "hanging.log") as worker:
                worker.start()
                worker.ask(op="sample")
        return PARITY

    stage.outcome = outcome
    one = qualifier()
    found, seen = run(one)
    assert found.status == "undetermined"
    assert "nothing within 0.5 s" in str(seen[-1].trial.figures["error"])
    assert isinstance(WorkerFailed("x"), LockstepError)


def test_what_is_known_of_a_search_that_was_cut_off(qualifier) -> None:
    one = qualifier()
    nothing = one.partial([])
    assert "was cut off (0 trials)" in verdict(one.qualification(nothing, {}, {}))
    some = one.partial([Record(None, "baseline", Trial(True)), Record(frozenset(), "new", Trial(False))])
    told = one.qualification(replace(some, records=some.records[:1]), {"ended early": "x"}, {"seconds": 1.0})
    assert "the search for what restores" in verdict(told)
    assert (told.exit_code, told.facts["ended early"], told.figures["seconds"]) == (1, "x", 1.0)


# -- what is refused, what is told


def test_sides_that_only_score_are_refused_before_any_trial(qualifier, stage: Stage) -> None:
    with pytest.raises(InputError, match=r"engine \(trainer:m\): OLD and NEW draw tokens"):
        run(qualifier(old="trainer:m", new="engine:m"))
    assert stage.opened == ["trainer:m"]
    assert stage.open_now == 0


def test_an_unknown_default_is_refused_before_any_trial(qualifier, stage: Stage) -> None:
    with pytest.raises(InputError, match="no seats of OLD"):
        run(qualifier(old="engine:m", new="engine:m,seats=8"))
    assert len(stage.opened) == 2


def test_a_default_that_the_engine_states_is_put_back(qualifier, stage: Stage) -> None:
    stage.stated = {"a": 5}
    stage.outcome = lambda settings, *_: ("fault", 0.1) if settings.get("a") == 1 else PARITY
    found, _ = run(qualifier(old="engine:m", new="engine:m,a=1"))
    assert [str(member.difference.restored) for member in found.members] == ["a=5"]
    assert "engine:m,a=5" in stage.opened


def test_both_sides_are_asked_once_only(qualifier, stage: Stage) -> None:
    one = qualifier()
    first = one.configurations
    assert one.configurations is first
    assert stage.opened == [OLD, NEW]


def test_other_models_are_refused(stage: Stage, model: Model, tmp_path: Path) -> None:
    other = models.load(str(tiny.build_random(tmp_path / "other", tiny.TINY, seed=1)))
    load = Workload(SamplingParams(max_tokens=4, n=1))
    one = Qualifier((parse("engine:m"), parse("engine:other")), None, (model, other), [load], tmp_path)
    with pytest.raises(InputError, match=r"baseline \(model\): OLD and NEW must share it"):
        run(one)


def test_earlier_trials_are_not_run_again_unless_they_gave_no_answer(qualifier, stage: Stage) -> None:
    stage.outcome = needs("a")
    _, before = run(qualifier())
    stage.opened.clear()
    one = qualifier()
    found, seen = run(one, tuple(before))
    assert found.kept == {"a"}
    assert all(record.known for record in seen)
    assert stage.opened == [OLD, NEW]
    unclear = tuple(replace(r, trial=Trial(None)) if r.kept == frozenset() else r for r in before)
    _, again = run(qualifier(), unclear)
    assert [record.kept for record in again if not record.known] == [frozenset()]


def test_progress_is_told_trial_by_trial(qualifier, stage: Stage) -> None:
    stage.outcome = needs("b")
    run(qualifier())
    assert stage.said[:2] == [f"OLD: {OLD}", f"NEW: {NEW}"]
    assert stage.said[2] == "trial 1: OLD against itself"
    assert stage.said[3].startswith("  parity, mean 0.001 nats, ")
    assert stage.said[4] == "trial 2: NEW, put back: no setting"
    assert stage.said[5].startswith("  differs (WGT01), mean ")


def test_what_both_state_and_nobody_names_is_in_the_report(qualifier, stage: Stage, monkeypatch) -> None:
    monkeypatch.setattr(Side, "state", lambda self: Statement("x", {"block": 16 if self.spec.kind == "vllm" else 128}))
    one = qualifier(old="vllm:m", new="engine:m")
    found, _ = run(one)
    facts = one.qualification(found, {"cpu": "x"}, {}).facts
    assert facts["not put back: block"] == "16 in OLD, 128 in NEW"
    assert (facts["cpu"], facts["scorer"]) == ("x", "trainer:m")


# -- for real: Lockstep's engine and trainer, real updates


def real(model: Model, folder: Path, old: str, new: str, scorer: str = "") -> Qualifier:
    load = Workload(SamplingParams(temperature=0.7, max_tokens=8, n=2, ignore_eos=True), 2, 2, floor=4)
    specs = parse(f"engine:m{old}"), parse(f"engine:m{new}")
    return Qualifier(specs, parse(scorer) if scorer else None, (model, model), [load], folder)


def test_a_real_engine_in_another_rounding_is_restored(model: Model, tmp_path: Path) -> None:
    one = real(model, tmp_path, "", ",head_dtype=model,page_size=32")
    found, seen = run(one)
    assert one.exact, "engine and trainer are one computation"
    assert [str(member.difference.restored) for member in found.members] == ["head_dtype=float32"]
    assert seen[0].trial.figures["tokens"] == 2 * 2 * 2 * 8
    assert one.failing is not None
    assert one.failing.completion.mean > 0


@pytest.mark.slow
def test_real_settings_without_an_effect_agree(model: Model, tmp_path: Path) -> None:
    found, _ = run(real(model, tmp_path, "", ",page_size=32,max_tokens_per_step=64,max_sequences=3"))
    assert found.status == "parity"
    assert len(found.differences) == 3


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_real_numbers_of_another_dtype_are_restored(model: Model, tmp_path: Path, dtype: str) -> None:
    other = {"float32": "bfloat16", "bfloat16": "float32"}[dtype]
    one = real(model, tmp_path, f",dtype={dtype}", f",dtype={other},max_sequences=5")
    found, _ = run(one)
    assert found.kept == {"dtype"}
    assert str(one.scorer) == ("trainer:m,dtype=float32" if dtype == "float32" else "trainer:m")
