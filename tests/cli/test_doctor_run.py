"""`lockstep doctor RUN` over runs of ours: clean, with a wrong bit, with a broken engine, damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lockstep import numerics
from lockstep.cli import _run
from lockstep.config import parse
from lockstep.core import Logprobs
from lockstep.engine import draw
from lockstep.errors import GateRefused
from lockstep.kernels.sampling import Sampled, sample
from lockstep.pipeline import Loop, assemble
from lockstep.trace import RunDirectory, rollouts
from lockstep.trace.observer import Observers

TINY = {
    "model": "tiny",
    "max_steps": 3,
    "num_prompts_per_step": 3,
    "num_generations": 4,
    "task": {"name": "reverse", "length": 2, "letters": 4, "held_out": 0.25},
    "sampling": {"temperature": 0.7, "max_tokens": 5},
    "engine": {"kv_cache_gb": 0.01},
    "optim": {"lr": 1e-3},
    "warm_start": {"steps": 12, "batch": 8, "lr": 3e-3},
    "train": {"checkpoint_every": 1, "keep_checkpoints": 9},
}


def train(path: Path, **changes: Any) -> Path:
    """A run, to its end or to its refusal."""
    config = parse({**TINY, **changes})
    with RunDirectory.start(path, config) as run:
        try:
            Loop(assemble(config), run, Observers([])).run()
        except GateRefused:
            assert run.refusals()
    return path


def raw(logits_NV: torch.Tensor, *rest: Any) -> Sampled:
    """The sampler, reporting logprobs at T = 1."""
    drawn = sample(logits_NV, *rest)
    logprobs = numerics.log_softmax(logits_NV).gather(1, torch.from_numpy(drawn.token_ids)[:, None])
    return Sampled(drawn.token_ids, logprobs[:, 0].numpy(), drawn.supports)


@pytest.fixture(scope="module", autouse=True)
def at_home(home: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCKSTEP_HOME", str(home))
        yield


@pytest.fixture(scope="module")
def clean(at_home: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("clean") / "run")


@pytest.fixture(scope="module")
def refused(at_home: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose engine reports raw logprobs: its first step was not admitted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draw, "sample", raw)
        return train(tmp_path_factory.mktemp("refused") / "run", max_steps=1)


@pytest.fixture
def run(clean: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(clean, tmp_path / "run"))


class Said:
    """What a call answered."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err
        self.lines = out.splitlines()
        self.flat = " ".join(out.split())


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    def call(*arguments: object) -> Said:
        code = _run(["doctor", *map(str, arguments)])
        return Said(code, *capsys.readouterr())

    return call


def rewrite(run: Path, step: int, change: Callable[[np.ndarray], np.ndarray], every: bool = False) -> None:
    """Let `change` have the sampler's logprobs of the first rollout of a step, or of every one."""
    file = RunDirectory(run).rollouts_file(step)
    records = rollouts.read(file)
    for at, record in enumerate(records[: None if every else 1]):
        told = record.rollout.sampler_logprobs
        changed = Logprobs(change(told.values.copy()), told.contract)
        records[at] = replace(record, rollout=replace(record.rollout, sampler_logprobs=changed))
    rollouts.write(file, records)


def one_bit(values: np.ndarray) -> np.ndarray:
    values.view(np.uint32)[0] ^= 1
    return values


def files(path: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def test_a_clean_run_is_parity_and_only_read(doctor, clean: Path) -> None:
    before = files(clean)
    said = doctor(clean)
    assert (said.code, said.err) == (0, "")
    assert said.lines[1].startswith("3 steps: 3 parity; 36 samples, ")
    assert said.lines[-1].startswith("parity: ")
    assert said.lines[-1].endswith("tokens compared, nothing beyond the noise floor, in 3 of 3 steps")
    assert "the run: finished, started 2" in said.out
    assert "its report: none was written" in said.out
    assert "bits may differ" not in said.out
    assert "why" not in said.flat.split()  # no table: there is nothing to say of any step
    assert files(clean) == before


def test_a_clean_run_loads_no_weights(doctor, clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        raise AssertionError("nothing has moved")

    monkeypatch.setattr("lockstep.models.load", load)
    assert doctor(clean).code == 0


def test_stale_rollouts_are_parity_too(doctor, tmp_path: Path) -> None:
    path = train(tmp_path / "run", pipeline={"max_lag": 2, "kv": "keep"}, max_steps=4)
    said = doctor(path)
    assert said.code == 0, said.out
    assert "in 4 of 4 steps" in said.lines[-1]


def test_a_broken_engine_is_named_with_the_setting(doctor, refused: Path) -> None:
    """The refused batch was kept; the weights of the warm start's checkpoint score it again."""
    said = doctor(refused)
    assert said.code == 1
    assert said.lines[1].startswith("1 step: 1 fault; 12 samples")
    assert "1 SEM01 (semantics)" in said.flat
    assert "1 gate: reject" in said.flat
    assert "the run: refused" in said.out
    assert said.lines[-1].startswith("step 1: SEM01 (semantics): ")
    assert "To mend it: `logprobs_mode=" in said.lines[-1]
    assert "beside the run" not in said.out  # both say the same


def test_what_was_found_beside_the_run_is_told_where_weights_are_gone(doctor, refused: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(refused, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints")))
    said = doctor(path)
    assert said.code == 1
    assert said.lines[-1].startswith("step 1: undetermined: ")
    assert "Beside the run, with its weights at hand, it was: SEM01 (semantics)" in said.lines[-1]
    assert "1 beside the run SEM01 (semantics)" in said.flat
    assert "its weights must be held - got none, expected one of 0" in said.flat


def test_a_wrong_bit_is_found_and_no_cause_is_invented(doctor, run: Path) -> None:
    rewrite(run, 2, one_bit)
    said = doctor(run)
    assert said.code == 1
    assert said.lines[1].startswith("3 steps: 2 parity, 1 undetermined; ")
    assert said.lines[-1].startswith("step 2: undetermined: 1 of ")
    assert said.lines[-1].endswith("and no cause explains it")
    assert "2 undetermined 1/" in said.flat
    assert "not looked at: identity update: it needs a live engine" in said.out


def test_a_lost_update_is_named_by_the_weights_that_are_there(doctor, run: Path) -> None:
    """The engine's logprobs of step 3 are made those of the version before: only the checkpoints can tell."""
    from lockstep.adapters.foreign.detection import read
    from lockstep.parity.hypothesis import Hypothesis, Weights
    from lockstep.pipeline.stored import StoredReference

    third = list(read(run).observations())[2]
    number = third.expected.number
    assert number is not None
    stale = StoredReference(RunDirectory(run)).score(third.samples, Hypothesis(weights=Weights(version=number - 1)))
    series = iter(stale)
    rewrite(run, 3, lambda _: next(series), every=True)
    said = doctor(run)
    assert said.code == 1
    assert said.lines[-1].startswith("step 3: WGT01 (weights): ")
    assert f"computes with the weights of version {number - 1}" in said.lines[-1]


def test_the_first_fault_decides_and_others_are_counted(doctor, run: Path) -> None:
    for step in (1, 3):
        rewrite(run, step, one_bit)
    said = doctor(run)
    assert said.lines[-1].startswith("step 1: undetermined")
    assert said.lines[-1].endswith("(1 more findings)")


@pytest.mark.parametrize("size", [0, 7, 400, -90])
def test_a_truncated_file_costs_only_its_step(doctor, run: Path, size: int) -> None:
    file = RunDirectory(run).rollouts_file(2)
    file.write_bytes(file.read_bytes()[:size])
    said = doctor(run)
    assert "2 steps: 2 parity" in said.out
    assert said.code == 2
    assert "1 file or line could not be read" in said.lines[-1]
    (line,) = (line for line in said.lines if line.startswith("not read: "))
    assert ("step_000002.parquet" if size else "no rollouts of step 2: they are gone") in line


def test_a_fault_in_what_is_left_of_a_damaged_run_is_still_a_fault(doctor, run: Path) -> None:
    rewrite(run, 3, one_bit)
    RunDirectory(run).rollouts_file(1).write_bytes(b"PAR1")
    said = doctor(run)
    assert said.code == 1
    assert said.lines[-1].startswith("step 3: undetermined")
    assert said.lines[-1].endswith(" - of a part of the run: 1 file or line could not be read")


def test_a_line_that_is_being_written_is_no_damage(doctor, run: Path) -> None:
    metrics = run / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes() + b'{"step": 4, "rew')
    assert doctor(run).code == 0


@pytest.mark.parametrize(
    ("file", "data", "says"),
    [
        ("manifest.json", b"{", "needs manifest.json"),
        ("manifest.json", b"[]", "AttributeError"),
        ("config.toml", b"x = [", "needs config.toml"),
        ("metrics.jsonl", b"x\n", "metrics.jsonl (line 1)"),
        ("metrics.jsonl", b'{"step": 1, "weight_version": 1, "weight_digest": "x"}\n', "a version has a number"),
        ("gates/step_000009.json", b"{", "step_000009.json"),
        ("parity/findings.jsonl", b"x\n", "findings.jsonl (line 1)"),
        ("parity/findings.jsonl", b'{"step": "x", "status": 1, "verdict": 2}\n', "a step, a status and a verdict"),
    ],
)
def test_what_is_damaged_is_said_and_the_rest_is_seen(doctor, run: Path, file: str, data: bytes, says: str) -> None:
    (run / file).parent.mkdir(exist_ok=True)
    (run / file).write_bytes(data)
    said = doctor(run)
    assert said.code == 2
    assert said.lines[1].startswith("3 steps: 3 parity")
    assert any(line.startswith("not read: ") and says in line for line in said.lines), said.out
    assert "of a part of the run" in said.lines[-1]
    assert said.err == ""


def test_a_run_without_its_weights_says_which_probes_could_not_look(doctor, run: Path) -> None:
    rewrite(run, 2, one_bit)
    for folder in ("checkpoints", "weights"):
        shutil.rmtree(run / folder)
    said = doctor(run)
    assert said.code == 1
    (line,) = (line for line in said.lines if "its weights must be held" in line)
    assert line.startswith("not looked at: ") and "readings" in line


def test_refusals_and_findings_of_an_attempt_that_was_repaired_do_not_count(doctor, run: Path, refused: Path) -> None:
    """A run that was refused at step 1, and went on with a mended engine."""
    for folder in ("gates", "parity"):
        shutil.copytree(refused / folder, run / folder)
    said = doctor(run)
    assert said.code == 0
    assert "1 gate: reject" in said.flat
    assert "1 beside the run SEM01 (semantics)" in said.flat
    assert "in 3 of 3 steps" in said.lines[-1]


def test_another_machine_is_said(doctor, run: Path) -> None:
    manifest = run / "manifest.json"
    tree = json.loads(manifest.read_text())
    tree["versions"]["torch"] = "1.0"
    manifest.write_text(json.dumps(tree))
    said = doctor(run)
    assert said.code == 0
    assert "and was 1.0 in the run: bits may differ" in said.out


def test_an_unfinished_run_is_looked_at(doctor, run: Path) -> None:
    manifest = run / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"ended": None, "outcome": None}))
    said = doctor(run)
    assert said.code == 0
    assert "the run: not ended, started 2" in said.out


def test_parts_of_a_run_are_looked_at_without_weights(doctor, clean: Path) -> None:
    for part in (clean / "rollouts", RunDirectory(clean).rollouts_file(2)):
        said = doctor(part)
        assert said.code == 0
        assert "the run: " not in said.out
        assert "structure" in said.out  # what the columns allow is told instead


SCHEMA = {"verdict", "status", "exit_code", "counts", "partial", "run", "audit"}
RUN = {"outcome", "started", "ended", "refusals", "recorded", "changes", "report", "unread"}
AUDIT = {
    "format", "version", "path", "coverage", "allows", "findings", "judged", "differences", "broken", "skipped", "gaps",
    "damaged", "stopped",
}  # fmt: skip


@pytest.mark.parametrize("name", ["clean", "refused"])
def test_json_is_alone_on_stdout_and_has_its_schema(doctor, request: pytest.FixtureRequest, name: str) -> None:
    path = request.getfixturevalue(name)
    said = doctor(path, "--json")
    found = json.loads(said.out)
    assert found.keys() == SCHEMA
    assert found["run"].keys() == RUN
    assert found["audit"].keys() == AUDIT
    assert found["exit_code"] == said.code == (1 if name == "refused" else 0)
    assert found["counts"].keys() == {"steps", "parity", "fault", "undetermined", "unjudged"}
    assert sum(found["counts"].values()) == 2 * found["counts"]["steps"]
    assert doctor(path).lines[-1] == found["verdict"]
    if name == "refused":
        (finding,) = found["audit"]["findings"]
        assert (finding["code"], finding["layer"], found["status"]) == ("SEM01", "semantics", "fault")
        assert finding["setting"] in found["verdict"]
        assert "identity update" not in finding["skipped"], "the layers behind one that explains all are not asked"
        assert [line["verdict"] for line in found["run"]["recorded"]] == [finding["verdict"]]


def test_the_report_can_be_kept(doctor, refused: Path, tmp_path: Path) -> None:
    kept = tmp_path / "reports" / "doctor.json"
    said = doctor(refused, "--output", kept)
    assert said.code == 1
    assert said.lines[-2] == f"this report: {kept}"
    assert json.loads(kept.read_text()) == json.loads(doctor(refused, "--json").out)


def test_what_is_no_run_is_one_message_and_exit_code_2(doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("nothing")
    with RunDirectory.start(tmp_path / "begun", parse(TINY)):
        pass
    for name, says in (
        ("nowhere", "run (nowhere): must be a file or a directory - got neither, expected"),
        ("empty", "run (empty): holds no run that is known - got no files, expected"),
        ("other", "notes.txt: neither JSON nor Parquet"),
        ("begun", "run directory (begun): a checkup looks at recorded rollouts - got no step, expected"),
    ):
        said = doctor(name)
        assert (said.code, said.out) == (2, "")
        assert says in said.err
        assert said.err.startswith("lockstep: ") and said.err.endswith(".\n")
        assert said.err.count("\n") == 1


def test_a_machine_speaks_json_too(doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lockstep.kernels.probe.invariance_probe", lambda subject: {"attention": "any number of rows"})
    said = doctor("--json")
    assert said.code == 0
    facts = json.loads(said.out)
    assert facts["threads"] >= 1
    assert facts["bfloat16: attention"] == facts["float32: attention"] == "any number of rows"
