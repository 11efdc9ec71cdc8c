"""`lockstep doctor` over what other frameworks wrote: what the columns allow, what they do not, one line at the end."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lockstep.adapters.foreign.audit import passive
from lockstep.adapters.foreign.detection import FORMATS
from lockstep.adapters.foreign.gaps import Gaps
from lockstep.adapters.foreign.permission import KINDS
from lockstep.adapters.foreign.run import ForeignRun
from lockstep.cli import _run
from lockstep.cli.account import Account
from lockstep.cli.checkup import Checkup, by_reason, counted, examine
from lockstep.cli.checkup_text import show
from lockstep.errors import InputError
from lockstep.parity.floor import Floor
from lockstep.parity.observation import Observation, Sample

OTHERS = [fmt.name for fmt in FORMATS if fmt.framework != "Lockstep"]
IDS = np.arange(20, dtype=np.int32)
SERIES = np.linspace(-3, -0.25, 20).astype(np.float32)
KEY = np.array([3, 5], np.uint64)


class Said:
    """What a call answered."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err
        self.lines = out.splitlines()
        self.flat = " ".join(out.split())


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    monkeypatch.setenv("COLUMNS", "300")

    def call(*arguments: object) -> Said:
        code = _run(["doctor", *map(str, arguments)])
        return Said(code, *capsys.readouterr())

    return call


def pair(name: str, seed: int, size: float = 0.0, shift: float = 0.0) -> Sample:
    """Two series that differ by noise of this size, and a shift."""
    noise = np.random.Generator(np.random.Philox(key=KEY, counter=seed)).normal(0, size, 20) if size else np.zeros(20)
    return Sample(name, IDS[:3], IDS + seed, (SERIES - noise - shift).astype(np.float32), SERIES)


def steps(*samples: list[Sample], exact: bool = False, ends: str = "", floor: Floor | None = None) -> Checkup:
    """The checkup of a run with these samples, one list a step."""

    def reader(gaps: Gaps):
        for at, some in enumerate(samples, 1):
            yield Observation(at, some)
        if ends:
            raise InputError(ends)

    return Checkup(passive(ForeignRun("made here", Path("runs/x"), reader, exact=exact), floor=floor), None)


@pytest.mark.parametrize("name", OTHERS)
def test_every_format_is_known_and_says_what_it_allows(doctor, good, tmp_path: Path, name: str) -> None:
    path = good.run(name, tmp_path / "run")
    said = doctor(path)
    assert (said.code, said.err) == (0, ""), said.out
    assert said.lines[0].startswith(name)
    assert said.lines[0].endswith(str(path))
    assert "unjudged; " in said.lines[1]
    assert [line.split()[0] for line in said.lines[3 : 3 + len(KINDS)]] == list(KINDS)
    assert said.lines[-1].startswith("unjudged: no contradiction in ")
    assert "the run: " not in said.out


@pytest.mark.parametrize("name", OTHERS)
def test_json_of_every_format(doctor, good, tmp_path: Path, name: str) -> None:
    said = doctor(good.run(name, tmp_path / "run"), "--json")
    found = json.loads(said.out)
    assert (said.code, found["exit_code"], found["status"], found["partial"]) == (0, 0, "unjudged", False)
    assert found["run"] is None
    assert found["audit"]["format"] == name
    assert list(found["audit"]["allows"]) == list(KINDS)
    assert all(answer.keys() == {"answer", "why"} for answer in found["audit"]["allows"].values())
    assert found["counts"]["unjudged"] == found["counts"]["steps"] == found["audit"]["coverage"]["steps"]


def test_what_two_sides_differ_by_is_told_and_not_judged(doctor, good, tmp_path: Path) -> None:
    said = doctor(good.run("prime-rl token exports", tmp_path / "run"))
    assert "the two sides differ by up to 0.25 nats" in said.lines[-1]
    assert "not looked at: readings, " in said.out and "- reference: none was given" in said.out


def test_texts_only_are_said_to_be_no_tokens(doctor, good, tmp_path: Path) -> None:
    said = doctor(good.run("TRL completions", tmp_path / "run"))
    assert "nothing could be compared: there are no token ids, sampler logprobs or trainer logprobs" in said.lines[-1]
    assert "structure no there are no token ids, only texts" in said.flat


def test_a_batch_that_was_served_twice_is_a_fault(doctor, good, tmp_path: Path) -> None:
    path = good.run("prime-rl token exports", tmp_path / "run")
    for rank in (0, 1):
        text = (path / f"token_exports/step_9/rank_{rank}.jsonl").read_text()
        rows = [json.loads(line) for line in text.splitlines()]
        for row in rows:  # so improbable that nobody draws it twice
            row["inference_logprobs"] = [20 * value for value in row["inference_logprobs"]]
        for step in (9, 10):
            good.lines(path / f"token_exports/step_{step}/rank_{rank}.jsonl", [row | {"step": step} for row in rows])
    said = doctor(path)
    assert said.code == 1
    assert said.lines[-1].startswith("step 10: OBJ04 (objective): ")
    assert "To mend it: " in said.lines[-1]
    assert "10 OBJ04 (objective)" in said.flat


def test_a_cut_off_line_costs_itself_and_is_said(doctor, good, tmp_path: Path) -> None:
    path = good.run("verl rollouts", tmp_path / "run")
    (path / "9.jsonl").write_bytes((path / "9.jsonl").read_bytes()[:-9])
    said = doctor(path)
    assert said.code == 2
    assert said.lines[1].startswith("2 steps: ")  # reading went on with the next file
    assert any("9.jsonl (line 3): the last line is cut off" in line for line in said.lines)
    assert said.lines[-1].endswith(" - of a part of the run: 1 file or line could not be read")


def test_a_truncated_table_costs_its_step(doctor, good, tmp_path: Path) -> None:
    path = good.run("TRL completions", tmp_path / "run")
    file = path / "completions" / "completions_00010.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    said = doctor(path)
    assert said.code == 2
    assert said.lines[1].startswith("1 step: ")
    assert "completions_00010.parquet: must be whole Parquet" in said.out


def test_a_packed_file_that_is_cut_off(doctor, good, tmp_path: Path) -> None:
    path = good.run("OpenAI-compatible responses", tmp_path / "run")
    file = path / "responses.jsonl"
    (path / "responses.jsonl.gz").write_bytes(gzip.compress(file.read_bytes() * 40, mtime=0)[:-60])
    file.unlink()
    said = doctor(path)
    assert "the packed file is cut off here, what is before it is used" in said.out
    assert said.code in (1, 2)  # copies of one response may also be told to be copies


def test_damage_in_the_middle_ends_the_reading_with_what_was_before(doctor, good, tmp_path: Path) -> None:
    path = good.run("verl rollouts", tmp_path / "run")
    rows = (path / "10.jsonl").read_text().splitlines()
    (path / "10.jsonl").write_text("\n".join([rows[0], "x", rows[2], ""]))
    said = doctor(path)
    assert said.code == 2
    assert said.lines[1].startswith("1 step: ")
    assert any(line.startswith("the reading broke off after 1 step: ") and "(line 2)" in line for line in said.lines)
    assert said.lines[-1].endswith("of a part of the run: the reading broke off")
    assert json.loads(doctor(path, "--json").out)["audit"]["stopped"]


def test_a_config_of_somebody_else_is_no_run_of_ours(doctor, good, tmp_path: Path) -> None:
    path = good.run("verl rollouts", tmp_path / "run")
    (path / "config.toml").write_text("x = 1\n")
    said = doctor(path)
    assert said.code == 0
    assert "the run: " not in said.out


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "must be a file or a directory - got neither"),
        (b"", "holds no run that is known - got "),
        (b"{}\n", "JSON, keys "),
        (b"PAR1", "must be whole Parquet - got "),
        (b"\x1f\x8b\x00", ""),
        (b"hello", "neither JSON nor Parquet"),
    ],
)
def test_a_path_that_is_neither_is_one_message(doctor, tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "some.file"
    if content is not None:
        path.write_bytes(content)
    said = doctor(path)
    assert (said.code, said.out) == (2, "")
    assert says in said.err
    assert " - got " in said.err and ", expected " in said.err
    assert "Traceback" not in said.err


def test_two_frameworks_in_one_folder_are_refused(doctor, good, tmp_path: Path) -> None:
    for name in ("verl rollouts", "TRL completions"):
        good.run(name, tmp_path / "runs" / name.split()[0])
    said = doctor(tmp_path / "runs")
    assert said.code == 2
    assert "holds one framework's run - got " in said.err


def test_an_exact_pair_is_parity() -> None:
    found = steps([pair("a", 1)], [pair("b", 30)], exact=True)
    assert (found.status, found.exit_code) == ("parity", 0)
    assert found.verdict == "parity: 40 tokens compared, nothing beyond the noise floor, in 2 of 2 steps"
    assert found.counts == {"steps": 2, "parity": 2, "fault": 0, "undetermined": 0, "unjudged": 0}


def test_steps_without_pairs_are_not_counted_as_parity() -> None:
    lone = Sample("b", IDS[:3], IDS + 30, SERIES)
    found = steps([pair("a", 1)], [lone], exact=True)
    assert found.counts == {"steps": 2, "parity": 1, "fault": 0, "undetermined": 0, "unjudged": 1}
    assert found.verdict.endswith("in 1 of 2 steps")


def test_a_floor_judges_and_undetermined_is_counted() -> None:
    floor = Floor.of([SERIES - pair("", 900 + at, 1e-3).sampler for at in range(64)])  # type: ignore[operator]
    quiet = [[pair(f"{at}", 40 * at, 1e-3)] for at in range(1, 4)]
    assert steps(*quiet, floor=floor).exit_code == 0
    found = steps(*quiet, [pair(f"x{at}", 200 + 40 * at, 1e-3, 0.5) for at in range(4)], floor=floor)
    assert (found.status, found.exit_code) == ("undetermined", 1)
    assert found.counts["undetermined"] == 1
    assert found.verdict.startswith("step 4: undetermined: 80 of 80 tokens differ")


def test_series_that_cannot_be_subtracted_are_undetermined() -> None:
    broken = Sample("b", IDS[:3], IDS + 30, SERIES, np.full(20, np.nan, np.float32))
    found = steps([pair("a", 1), broken])
    assert (found.status, found.exit_code, found.counts["undetermined"]) == ("undetermined", 1, 1)
    assert found.verdict == "step 1: undetermined: 1 samples have two series that cannot be subtracted"


def test_nothing_read_is_bad_input() -> None:
    found = steps(ends="broken at once")
    assert (found.status, found.exit_code) == ("unjudged", 2)
    assert found.verdict == "unjudged: no step could be read - of a part of the run: the reading broke off"
    assert steps().exit_code == 2


def test_a_fault_outweighs_damage() -> None:
    moved = pair("a", 1, shift=0.5)
    found = steps([moved], exact=True, ends="broken")
    assert (found.exit_code, found.partial) == (1, True)
    assert found.verdict.endswith("of a part of the run: the reading broke off")


def test_words_are_never_markup(capsys: pytest.CaptureFixture[str]) -> None:
    """Paths and reasons hold brackets; a terminal's markup must not eat them, nor trip over them."""
    found = steps([pair("[/red]", 1)], ends="file [bold] (line 3): [/x] is damaged")
    show(found, Path("[/out].json"))
    out = capsys.readouterr().out
    assert "file [bold] (line 3): [/x] is damaged" in out
    assert "this report: [/out].json" in out


def test_probes_are_grouped_by_their_reason() -> None:
    assert by_reason({"a": "x", "b": "y", "c": "x"}) == {"x": ["a", "c"], "y": ["b"]}
    assert [counted(count, "step") for count in (0, 1, 2)] == ["0 steps", "1 step", "2 steps"]


def test_a_folder_without_configuration_has_no_account(tmp_path: Path) -> None:
    assert Account.of(tmp_path) is None
    (tmp_path / "config.toml").write_text("")
    found = Account.of(tmp_path)
    assert found is not None
    assert len(found.unread) == 1
    assert "needs manifest.json" in found.unread[0]
    assert (found.refusals, found.recorded, found.told) == ([], [], {})


def test_a_run_of_ours_is_examined_with_its_account(good, tmp_path: Path) -> None:
    found = examine(good.run("Lockstep rollouts", tmp_path / "run"))
    assert found.account is not None
    assert found.status == "parity"
