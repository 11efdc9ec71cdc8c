"""`lockstep qualify` as a user meets it: one line of verdict, reports on disk whatever happens, exit codes."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lockstep.adapters.engines import qualify as engines
from lockstep.adapters.engines.qualify import Failing
from lockstep.adapters.engines.spec import Spec
from lockstep.cli import main
from lockstep.cli import qualify as command
from lockstep.errors import StageError
from lockstep.models import tiny
from lockstep.parity.observation import Statement
from lockstep.parity.qualify import pack
from lockstep.parity.qualify.case import Completion
from lockstep.parity.qualify.report import NAMES
from lockstep.parity.qualify.trial import Trial

REPORTS = {*NAMES.values(), command.TRIALS}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_random(tmp_path_factory.mktemp("models") / "m", tiny.TINY)


@dataclass
class World:
    """Engines whose trials end as `outcome(settings)` says; `ran` has the settings of each trial."""

    outcome: Callable[[dict[str, Any]], bool | None] = lambda _: True
    ran: list[dict[str, Any]] = field(default_factory=list)

    def audited(self, spec: Spec) -> tuple[Trial, Failing | None]:
        settings = dict(spec.settings)
        self.ran.append(settings)
        parity = self.outcome(settings)
        differing = 0 if parity else 8
        trial = Trial(parity, {"mean": 0.25 * (not parity), "max": 1.0, "tokens": 8, "differing": differing})
        return trial, None if parity is not False else Failing(_completion(), 1, 2)


def _completion() -> Completion:
    ids, series = np.arange(4, dtype=np.int32), np.full(4, -1.0, np.float32)
    return Completion("s2p0/1", ids, ids, series, series - np.float32(0.25))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    made = World()
    side = SimpleNamespace(can={"sample"}, state=lambda: Statement("x", {"dtype": "bfloat16"}))
    monkeypatch.setattr(engines, "opened", lambda *_: side)
    monkeypatch.setattr(engines.Qualifier, "_audited", lambda qualifier, spec, model: made.audited(spec))
    monkeypatch.chdir(tmp_path)
    return made


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], model: Path) -> Callable[..., tuple[int, str, str]]:
    """Run the command on `OLD,` and `NEW,` settings of one model: exit code, standard output, standard error."""

    def call(old: str, new: str, *more: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main(["qualify", f"engine:{model}{old}", f"engine:{model}{new}", *more])
        said = capsys.readouterr()
        return int(left.value.code or 0), said.out, said.err

    return call


def needs(*names: str) -> Callable[[dict[str, Any]], bool]:
    return lambda settings: not any(settings[name] for name in names)


OLD, NEW = ",a=0,b=0,c=0", ",a=1,b=1,c=1"


# -- verdicts, exit codes, reports


def test_an_engine_that_agrees_is_exit_code_0(run, world: World) -> None:
    code, out, _ = run(OLD, NEW, "--output", "q")
    assert code == 0
    assert out.splitlines()[-1].endswith("though 3 settings differ (2 trials)")
    assert {path.name for path in Path("q").iterdir()} == REPORTS


def test_what_restores_is_named_last_and_is_exit_code_1(run, world: World) -> None:
    world.outcome = needs("a", "c")
    code, out, err = run(OLD, NEW, "--output", "q")
    assert code == 1
    last = out.splitlines()[-1]
    assert "restored by 2 settings: a=0, c=0" in last
    assert "reports: q" in out
    assert "trial 1: OLD against itself" in err and "put back" in err
    assert {path.name for path in Path("q").iterdir()} == {*REPORTS, command.PACK}
    found = json.loads(Path("q/qualification.json").read_text())
    assert found["verdict"] == last
    assert found["restored_by"] == {"a": 0, "c": 0}
    assert found["facts"]["temperature"] == "0.7 1.0"
    assert "python" in found["facts"] and "cpu" in found["facts"]


@pytest.mark.parametrize(("outcome", "code", "says"), [
    (lambda _: False, 2, "refused: "),
    (lambda _: None, 2, "could not be compared with itself"),
    (lambda settings: settings["a"] == 0, 1, "restored by 1 setting: a=0"),
    (lambda settings: None if settings["a"] else True, 1, "undetermined: "),
])  # fmt: skip
def test_exit_codes(run, world: World, outcome, code: int, says: str) -> None:
    world.outcome = outcome
    left, out, _ = run(OLD, NEW)
    assert left == code
    assert says in out.splitlines()[-1]


def test_json_is_alone_on_stdout_and_what_is_on_disk(run, world: World) -> None:
    world.outcome = needs("b")
    code, out, err = run(OLD, NEW, "--output", "q", "--json")
    assert code == 1
    assert json.loads(out) == json.loads(Path("q/qualification.json").read_text())
    assert "trial 1" in err


def test_without_output_the_directory_is_below_runs_and_named_by_the_pair(run, world: World) -> None:
    code, _, _ = run(OLD, NEW)
    (made,) = Path("runs").iterdir()
    assert code == 0
    assert made.name.startswith("qualify-engine-")
    assert {path.name for path in made.iterdir()} == REPORTS


# -- the repro pack


def test_the_pack_is_small_and_says_how_to_run_it_again(run, world: World, model: Path) -> None:
    world.outcome = needs("a")
    more = ("--temperature", "0.5", "--temperature", "0.9", "--temperature", "1.3", "--seed", "4", "--prompts", "3")
    code, out, _ = run(OLD, NEW, "--output", "q", *more)
    assert code == 1
    file = Path("q") / command.PACK
    assert file.stat().st_size < 100_000
    case = pack.read(file)
    assert [one.id for one in case.completions] == ["s2p0/1"]
    assert case.verdict == out.splitlines()[-1]
    assert (case.old["a"], case.new["a"]) == (0, 1)
    assert case.facts["logprobs"].startswith("old_logprobs are those of trainer:")
    words = shlex.split(case.rerun)
    assert words[:4] == ["lockstep", "qualify", f"engine:{model}{OLD}", f"engine:{model}{NEW}"]
    assert [words[i + 1] for i, word in enumerate(words) if word == "--temperature"] == ["0.5", "0.9"]
    assert (words[words.index("--seed") + 1], words[words.index("--prompts") + 1]) == ("4", "3")


def test_the_command_of_the_pack_can_be_run(run, world: World, capsys) -> None:
    world.outcome = needs("a")
    run(OLD, NEW, "--output", "q")
    words = shlex.split(pack.read(Path("q") / command.PACK).rerun)
    with pytest.raises(SystemExit) as left:
        main([*words[1:], "--output", "again"])
    assert left.value.code == 1
    assert "restored by 1 setting: a=0" in capsys.readouterr().out


@pytest.mark.parametrize(("workload", "step", "temperatures", "steps"), [(0, 1, 1, 1), (0, 2, 1, 2), (1, 1, 2, 3)])
def test_the_command_goes_no_further_than_the_failing_case(workload, step, temperatures: int, steps: int) -> None:
    load = command.Workloads(steps=3, model="m")
    one = Spec("engine", "m")
    words = shlex.split(load.rerun(one, one, one, Failing(_completion(), workload, step)))
    assert words.count("--temperature") == temperatures
    assert words[words.index("--steps") + 1] == str(steps)
    assert words[-2:] == ["--model", "m"]


# -- going on


def test_a_directory_with_trials_is_not_written_over(run, world: World) -> None:
    run(OLD, NEW, "--output", "q")
    before = {path.name: path.read_bytes() for path in Path("q").iterdir()}
    code, out, err = run(OLD, NEW, "--output", "q")
    assert (code, out) == (2, "")
    assert "it is not written over" in err and "--resume" in err
    assert {path.name: path.read_bytes() for path in Path("q").iterdir()} == before


def test_resume_runs_nothing_twice(run, world: World) -> None:
    world.outcome = needs("b", "c")
    first = run(OLD, NEW, "--output", "q")
    log = (Path("q") / command.TRIALS).read_bytes()
    world.ran.clear()
    again = run(OLD, NEW, "--output", "q", "--resume")
    assert world.ran == []
    assert (again[0], again[1]) == (first[0], first[1])
    assert (Path("q") / command.TRIALS).read_bytes() == log
    assert (Path("q") / command.PACK).exists()


def test_resume_goes_on_behind_the_last_whole_trial(run, world: World) -> None:
    world.outcome = needs("b")
    whole = run(OLD, NEW, "--output", "q")
    total = len(world.ran)
    file = Path("q") / command.TRIALS
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:3]) + lines[3][:20])  # two trials, and a part of the third
    world.ran.clear()
    again = run(OLD, NEW, "--output", "q", "--resume")
    assert len(world.ran) == total - 2
    assert (again[0], again[1]) == (whole[0], whole[1])


def test_resume_makes_a_pack_that_is_missing(run, world: World) -> None:
    world.outcome = needs("b")
    run(OLD, NEW, "--output", "q")
    (Path("q") / command.PACK).unlink()
    world.ran.clear()
    run(OLD, NEW, "--output", "q", "--resume")
    assert world.ran == [{"a": 1, "b": 1, "c": 1}], "only NEW as it is"
    assert pack.read(Path("q") / command.PACK).completions


@pytest.mark.parametrize(
    "other", [("--seed", "1"), ("--steps", "2"), ("--temperature", "0.7"), ("--scorer", "trainer:x")]
)
def test_resume_refuses_trials_of_another_workload(run, world: World, other: tuple[str, str]) -> None:
    run(OLD, NEW, "--output", "q")
    code, out, err = run(OLD, NEW, "--output", "q", "--resume", *other)
    assert (code, out) == (2, "")
    assert "its trials must be of the same pair of configurations" in err


def test_resume_without_trials_begins(run, world: World) -> None:
    assert run(OLD, NEW, "--output", "q", "--resume")[0] == 0
    assert (Path("q") / command.TRIALS).exists()


# -- what fails


def test_a_side_that_fails_leaves_a_partial_report_and_a_clear_error(run, world: World) -> None:
    def outcome(settings: dict[str, Any]) -> bool:
        if len(world.ran) > 3:
            raise StageError("worker (vllm): it must answer in time - got nothing within 300 s, expected an answer")
        return not settings["a"]

    world.outcome = outcome
    code, out, err = run(OLD, NEW, "--output", "q")
    assert (code, out) == (2, "")
    assert "engines must answer - got 3 failed trials" in err
    assert "nothing within 300 s" in err and "what is known by now is in q" in err
    assert "Traceback" not in err
    found = json.loads(Path("q/qualification.json").read_text())
    assert found["status"] == "undetermined" and "was cut off" in found["verdict"]
    assert "3 failed trials" in found["facts"]["ended early"]
    assert found["num_trials"] == 5  # three with an answer, two of the failed ones; the third ended it
    assert {path.name for path in Path("q").iterdir()} == {*REPORTS, command.PACK}


def test_after_a_failure_resume_finds_the_answer(run, world: World) -> None:
    def broken(settings: dict[str, Any]) -> bool:
        if len(world.ran) > 3:
            raise StageError("gone")
        return not settings["a"]

    world.outcome = broken
    run(OLD, NEW, "--output", "q")
    world.outcome = needs("a")
    world.ran.clear()
    code, out, _ = run(OLD, NEW, "--output", "q", "--resume")
    assert code == 1
    assert "restored by 1 setting: a=0" in out
    assert {"a": 0, "b": 0, "c": 0} not in world.ran, "trials with an answer are kept"
    assert "ended early" not in json.loads(Path("q/qualification.json").read_text())["facts"]


def test_one_failure_in_a_search_is_told_and_the_search_goes_on(run, world: World) -> None:
    def outcome(settings: dict[str, Any]) -> bool:
        if settings == {"a": 1, "b": 0, "c": 0}:
            raise StageError("it does not start with these")
        return not settings["a"]

    world.outcome = outcome
    code, out, err = run(OLD, NEW, "--output", "q")
    assert code == 1
    assert "a=0" in out.splitlines()[-1]
    assert "failed: it does not start with these" in err
    assert "it does not start with these" in Path("q/report.md").read_text()


def test_an_interruption_is_130_with_a_partial_report(run, world: World) -> None:
    def outcome(settings: dict[str, Any]) -> bool:
        if settings["a"]:
            raise KeyboardInterrupt
        return True

    world.outcome = outcome
    code, out, err = run(OLD, NEW, "--output", "q")
    assert (code, out) == (130, "")
    assert "interrupted. 1 trials are kept in q; --resume goes on" in err
    assert json.loads(Path("q/qualification.json").read_text())["num_trials"] == 1


def test_an_interruption_before_the_first_trial_is_reported_too(run, world: World) -> None:
    def outcome(_: dict[str, Any]) -> bool:
        raise KeyboardInterrupt

    world.outcome = outcome
    assert run(OLD, NEW, "--output", "q")[0] == 130
    assert json.loads(Path("q/qualification.json").read_text())["verdict"].endswith("was cut off (0 trials)")


# -- what is refused


@pytest.mark.parametrize(("old", "new", "more", "says"), [
    (",a=0", "", (), "no a of NEW"),
    ("", ",a", (), "settings are NAME=VALUE"),
    (",a=0,a=1", ",a=1", (), "a setting is given once"),
    (OLD, NEW, ("--steps", "0"), "workload (steps): out of range"),
    (OLD, NEW, ("--prompts", "-1"), "workload (prompts): out of range"),
    (OLD, NEW, ("--temperature", "-1"), "temperature"),
    (OLD, NEW, ("--scorer", "nobody:x"), "it begins with a kind and a colon"),
    (OLD, NEW, ("--tempratur", "1"), "--tempratur"),
])  # fmt: skip
def test_a_mistake_is_one_message_and_nothing_is_run_or_written(run, world: World, old, new, more, says: str) -> None:
    code, out, err = run(old, new, *more)
    assert (code, out) == (2, "")
    assert says in err.replace("\n", " ")
    assert world.ran == []
    assert not Path("runs").exists()


@pytest.mark.parametrize("words", [["openai:http://x", "openai:http://y"], ["openai:http://x", "openai:http://x"]])
def test_without_a_model_nothing_can_be_scored(world: World, capsys, words: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["qualify", *words])
    assert left.value.code == 2
    assert "qualification (model)" in capsys.readouterr().err


def test_the_model_of_an_endpoint_is_named_by_the_other_side(model: Path) -> None:
    pair = Spec("openai", "http://x"), Spec("engine", str(model))
    first, second = command._models(pair, "")
    assert first is second or first.path == second.path == model


def test_names_of_directories_are_harmless() -> None:
    assert command._slug("qualify-vllm:../../etc,a=1 b/ü") == "qualify-vllm-..-..-etc-a=1-b"
    assert len(command._slug("x" * 1000)) == 150


# -- as a process


@pytest.mark.slow
def test_real_engines_in_a_process(lockstep: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    new = "engine:tiny,head_dtype=model,page_size=32"
    quick = ("--prompts", 2, "--n", 2, "--max-tokens", 8, "--temperature", 0.7)
    done = lockstep("qualify", "engine:tiny", new, "--output", "q", *quick)
    assert done.returncode == 1, done.stderr
    assert "restored by 1 setting: head_dtype=float32" in done.stdout.splitlines()[-1]
    case = pack.read(tmp_path / "q" / command.PACK)
    assert case.completions[0].mean > 0
    again = lockstep(*shlex.split(case.rerun)[1:], "--output", "again", "--json")
    assert again.returncode == 1, again.stderr
    found = json.loads(again.stdout)
    assert found["restored_by"] == {"head_dtype": "float32"}
    elsewhere = pack.read(tmp_path / "again" / command.PACK)
    assert elsewhere.completions[0].new_logprobs.tobytes() == case.completions[0].new_logprobs.tobytes()


def test_help_needs_no_engine(lockstep: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = lockstep("qualify", "--help")
    assert done.returncode == 0
    for flag in ("--scorer", "--temperature", "--output", "--resume", "--json", "--steps", "--prompts", "--seed"):
        assert flag in done.stdout
