"""The run directory: one writer, whole after any crash, never overwritten by accident."""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lockstep.config import RunConfig, to_toml
from lockstep.core import Decision, Reward
from lockstep.errors import InputError, StorageError
from lockstep.trace import RolloutRecord, RunDirectory

Make = Callable[..., RolloutRecord]
CONFIG = RunConfig(model="tiny", max_steps=4)
REJECT = Decision("reject", "proposal-3", "2 of 8 tokens differ", {"first": {"position": 4, "trainer": math.nan}})


def step(number: int) -> dict[str, float | None]:
    return {"step": number, "reward": number / 8, "parity/max": 0.0, "parity/num_tokens": 1024}


def run_of(path: Path, steps: int) -> None:
    """A run of `steps` steps that nobody closed properly, as after a kill."""
    with RunDirectory.start(path, CONFIG) as run:
        for number in range(1, steps + 1):
            run.append(step(number))


def contents(path: Path) -> dict[str, bytes]:
    return {
        str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file() and f.name != ".lock"
    }


def test_a_run_records_what_decided_it(tmp_path: Path, make_record: Make) -> None:
    with RunDirectory.start(tmp_path / "runs" / "a", CONFIG) as run:
        run.update_manifest({"model": {"digest": "ab" * 32}, "invariance": {"q": "pad"}})
        run.append_evaluation({"step": 0, "eval/accuracy": 0.25, "eval/num_tasks": 80})
        run.append(step(1))
        run.write_rollouts(1, [make_record(reward=Reward("add-3#0", 1.0))])
        run.finish("finished", {"accuracy_after": 0.75, "parity_max": 0.0})
        run.check()
    read = RunDirectory(tmp_path / "runs" / "a")
    assert read.config() == CONFIG
    assert read.metrics() == [step(1)]
    assert read.evaluations() == [{"step": 0, "eval/accuracy": 0.25, "eval/num_tasks": 80}]
    assert read.rollout_steps() == [1]
    assert read.rollouts(1)[0].reward == Reward("add-3#0", 1.0)
    found = read.manifest()
    assert found["model"] == {"digest": "ab" * 32} and found["invariance"] == {"q": "pad"}
    assert found["outcome"] == "finished" and found["ended"] >= found["started"]
    assert found["summary"] == {"accuracy_after": 0.75, "parity_max": 0.0}
    assert read.weights(40).name == "step_40"


def test_a_fresh_run_never_overwrites_another(tmp_path: Path) -> None:
    run_of(tmp_path, 2)
    before = contents(tmp_path)
    with pytest.raises(
        InputError, match=r"got a run of 2 steps, expected .* --resume, move it aside with --fresh, or give"
    ):
        RunDirectory.start(tmp_path, CONFIG)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["config.toml", "metrics.jsonl", "weights/step_1/model.safetensors", "report.html"])
def test_files_of_somebody_else_are_not_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match="a fresh run needs a directory without one"):
        RunDirectory.start(tmp_path, CONFIG)
    assert contents(tmp_path) == {name: b"mine"}


def test_a_run_that_ended_before_its_first_step_may_be_started_again(tmp_path: Path) -> None:
    with RunDirectory.start(tmp_path, CONFIG) as run:
        run.append_evaluation({"step": 0, "eval/accuracy": 0.25})
        run.report_file.write_text("no step has been taken")
    with RunDirectory.start(tmp_path, RunConfig(model="other")) as run:
        assert run.evaluations() == [] and run.config().model == "other"


def test_resume_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--resume continues a run that is there - got no config\.toml"):
        RunDirectory.start(tmp_path / "typo", CONFIG, resume=True)


def test_resume_goes_on_where_the_checkpoint_was(tmp_path: Path, make_record: Make) -> None:
    with RunDirectory.start(tmp_path, CONFIG) as run:
        run.append_evaluation({"step": 0, "eval/accuracy": 0.25})
        for number in (1, 2, 3):
            run.append(step(number))
            run.write_rollouts(number, [make_record(step=number)])
        run.append_evaluation({"step": 3, "eval/accuracy": 0.5})
        run.write_refusal(4, REJECT)
    with RunDirectory.start(tmp_path, CONFIG, resume=True) as run:
        run.truncate_after(2)
        assert run.metrics() == [step(1), step(2)] and run.rollout_steps() == [1, 2]
        assert [line["step"] for line in run.evaluations()] == [0]
        assert [refusal.step for refusal in run.refusals()] == [4], "evidence is never removed"
        run.append(step(3))
        run.check()
        found = run.manifest()
    assert found["outcome"] is None and [entry["after_step"] for entry in found["resumed"]] == [3]


def test_resume_from_nothing_starts_over(tmp_path: Path) -> None:
    run_of(tmp_path, 3)
    with RunDirectory.start(tmp_path, CONFIG, resume=True) as run:
        run.truncate_after(0)
        assert run.metrics() == []
        run.append(step(1))
        run.check()


def test_a_resumed_run_may_be_longer_but_not_another(tmp_path: Path) -> None:
    run_of(tmp_path, 1)
    longer = RunConfig(model="tiny", max_steps=9)
    with RunDirectory.start(tmp_path, longer, resume=True) as run:
        assert run.config() == longer
    other = RunConfig.model_validate({"model": "tiny", "optim": {"lr": 0.5}, "seed": 3})
    with pytest.raises(InputError, match=r"resume \(optim\.lr, seed\): .* got 0\.5, 3, expected 1e-05, 0"):
        RunDirectory.start(tmp_path, other, resume=True)
    with RunDirectory.start(tmp_path, longer, resume=True) as run:
        assert run.config() == longer, "a refused resume leaves the lock free and the configuration alone"


@settings(max_examples=25)
@given(cut=st.data())
def test_a_kill_at_any_byte_leaves_a_run_that_resumes(
    tmp_path_factory: pytest.TempPathFactory, cut: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("run")
    run_of(path, 3)
    whole = (path / "metrics.jsonl").read_bytes()
    kept = whole[: cut.draw(st.integers(0, len(whole)))]
    (path / "metrics.jsonl").write_bytes(kept)
    (path / ".metrics.jsonl.123.tmp").write_bytes(b"half")
    lines = kept.count(b"\n")
    assert len(RunDirectory(path).metrics()) == lines, "a reader does not trip over the torn line"
    with RunDirectory.start(path, CONFIG, resume=True) as run:
        run.check()
        run.append(step(lines + 1))
        assert run.metrics() == [step(number) for number in range(1, lines + 2)]


def test_damage_in_the_middle_is_reported_not_repaired(tmp_path: Path) -> None:
    run_of(tmp_path, 3)
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_bytes(lines[0] + b"\0" * 20 + b"\n" + lines[2])
    with pytest.raises(StorageError, match=r"line 2"):
        RunDirectory.start(tmp_path, CONFIG, resume=True)


def test_two_processes_cannot_write_one_run(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from lockstep.config import RunConfig\n"
        "from lockstep.trace import RunDirectory; from lockstep.errors import InputError\n"
        "try: RunDirectory.start(Path(sys.argv[1]), RunConfig(model='tiny', max_steps=4), resume=True)\n"
        "except InputError as refusal: print(refusal); sys.exit(refusal.exit_code)"
    )
    with RunDirectory.start(tmp_path, CONFIG) as run:
        run.append(step(1))
        done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)
        assert done.returncode == 2 and "one process writes a run" in done.stdout
        run.append(step(2))
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_steps_ascend_and_only_the_owner_writes(tmp_path: Path) -> None:
    with RunDirectory.start(tmp_path, CONFIG) as run:
        run.append(step(2))
        for number in (1, 2):
            with pytest.raises(AssertionError, match=f"step {number} after step 2"):
                run.append(step(number))
    with pytest.raises(AssertionError, match=r"between start\(\) and close\(\)"):
        run.append(step(3))
    with pytest.raises(AssertionError):
        RunDirectory(tmp_path).append(step(3))
    assert run.metrics() == [step(2)]


def test_a_refused_batch_is_kept_with_its_decision(tmp_path: Path, make_record: Make) -> None:
    with RunDirectory.start(tmp_path, CONFIG) as run:
        file = run.write_refusal(3, REJECT, [make_record(), make_record()])
        assert file == tmp_path / "gates" / "step_000003.json"
        with pytest.raises(AssertionError, match="only refusals"):
            run.write_refusal(4, Decision("admit", "p", "equal"))
        (refusal,) = run.refusals()
    assert (refusal.step, refusal.outcome, refusal.reason) == (3, "reject", "2 of 8 tokens differ")
    assert refusal.evidence == {"first": {"position": 4, "trainer": "NaN"}}, "a NaN is not hidden"
    assert refusal.batch is not None
    from lockstep.trace import rollouts

    assert len(rollouts.read(refusal.batch)) == 2


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"run directory \(.*/file/run\): must be writable"):
        RunDirectory.start(tmp_path / "file" / "run", CONFIG)


@pytest.mark.parametrize("name", ["config.toml", "manifest.json"])
def test_reading_what_is_no_run_says_so(tmp_path: Path, name: str) -> None:
    run = RunDirectory(tmp_path)
    read = {"config.toml": run.config, "manifest.json": run.manifest}[name]
    with pytest.raises(InputError, match=f"needs {name} - got .*No such file"):
        read()
    (tmp_path / name).write_bytes(b"\xff{")
    with pytest.raises(InputError, match=f"needs {name}"):
        read()


class Life(RuleBasedStateMachine):
    """A run that steps, evaluates, is refused, killed in mid-line, and resumed from checkpoints, in any order."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "run"
        self.run = RunDirectory.start(self.path, CONFIG)
        self.steps: list[int] = []
        self.refused: set[int] = set()

    @rule(gap=st.integers(1, 3))
    def step(self, gap: int) -> None:
        number = (self.steps[-1] if self.steps else 0) + gap
        self.run.append(step(number))
        self.steps.append(number)

    @rule()
    def refuse(self) -> None:
        number = (self.steps[-1] if self.steps else 0) + 1
        self.run.write_refusal(number, REJECT)
        self.refused.add(number)

    @rule(after=st.integers(0, 12), torn=st.binary(max_size=9).filter(lambda b: b"\n" not in b))
    def kill_and_resume(self, after: int, torn: bytes) -> None:
        self.run.close()
        if self.steps:
            with self.run.metrics_file.open("ab") as file:
                file.write(torn)
        self.run = RunDirectory.start(self.path, CONFIG, resume=True)
        self.run.truncate_after(after)
        self.steps = [number for number in self.steps if number <= after]

    @invariant()
    def the_disk_holds_exactly_what_happened(self) -> None:
        if not hasattr(self, "run"):
            return
        self.run.check()
        assert self.run.metrics() == [step(number) for number in self.steps]
        assert {refusal.step for refusal in self.run.refusals()} == self.refused
        assert self.run.config_file.read_text() == to_toml(CONFIG)

    def teardown(self) -> None:
        if hasattr(self, "run"):
            self.run.close()
            self.folder.cleanup()


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=10, stateful_step_count=10)
