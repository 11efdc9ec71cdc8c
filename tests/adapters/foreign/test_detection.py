"""Formats are told by what is in the files; what nobody knows, or what is two things at once, is listed."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lockstep.adapters.foreign import detection
from lockstep.adapters.foreign.detection import FORMATS, detect, read, survey
from lockstep.errors import InputError

NAMES = [fmt.name for fmt in FORMATS]


def test_every_format_has_a_fixture(good):
    assert list(good.writers) == sorted(good.writers, key=NAMES.index)
    assert set(good.writers) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_recognised_whatever_its_files_are_called(good, tmp_path: Path, name: str):
    path = good.run(name, tmp_path / "run")
    assert detect(path).name == name
    for at, file in enumerate(sorted(survey(path).files[detect(path)])):
        assert detect(file).name == name
        assert detect(Path(shutil.copy(file, tmp_path / f"copy{at}.txt"))).name == name


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("Lockstep rollouts", "TRL completions")])
def test_packed_lines_are_recognised(good, tmp_path: Path, name: str):
    path = good.run(name, tmp_path / "run")
    file = survey(path).files[detect(path)][0]
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    plain, unpacked = list(read(file).observations()), list(read(packed).observations())
    assert detect(packed).name == name
    assert [[s.token_ids.tolist() for s in o.samples] for o in unpacked] == [
        [s.token_ids.tolist() for s in o.samples] for o in plain
    ]


@pytest.mark.parametrize(
    ("first", "second"), [(a.name, b.name) for a in FORMATS for b in FORMATS if a.framework < b.framework]
)
def test_two_frameworks_are_ambiguous(good, tmp_path: Path, first: str, second: str):
    good.run(first, tmp_path / "a")
    good.run(second, tmp_path / "b")
    with pytest.raises(InputError, match="holds one framework's run - got ") as refused:
        detect(tmp_path)
    assert first in str(refused.value)
    assert second in str(refused.value)
    assert "Give the directory of one run." in str(refused.value)


def test_of_one_framework_the_format_that_says_more_is_taken(good, tmp_path: Path):
    good.run("prime-rl episodes", tmp_path / "run")
    good.run("prime-rl token exports", tmp_path / "run")
    run = read(tmp_path / "run")
    assert run.name == "prime-rl token exports"
    assert len(run.left_out) == 1
    assert run.left_out[0].startswith("1 files of prime-rl episodes (")


def test_what_nobody_knows_is_listed(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    (tmp_path / "list.json").write_text('[[{"a": 1}]]')
    (tmp_path / "empty.json").write_text("[]\n")
    (tmp_path / "three.jsonl").write_text("[3]\n")
    (tmp_path / "nothing").touch()
    (tmp_path / "x.safetensors").write_bytes(bytes(64))
    with pytest.raises(InputError) as refused:
        detect(tmp_path)
    text = str(refused.value)
    for words in (
        "metrics.jsonl: JSON, keys step, loss;", "list.json: JSON, a list of a list of keys a;",
        "empty.json: JSON, an empty list;", "three.jsonl: JSON, a list of no object", "nothing: empty;",
        "x.safetensors: neither JSON nor Parquet",
    ):  # fmt: skip
        assert words in text
    assert "expected Lockstep rollouts, or TRL completions, or verl rollouts" in text


def test_a_table_of_somebody_else(tmp_path: Path):
    pq.write_table(pa.table({"a": [1], "b": [2]}), tmp_path / "t")
    with pytest.raises(InputError, match=r"t: Parquet with a, b, expected"):
        detect(tmp_path / "t")


def test_a_value_of_two_formats_is_ambiguous(good, tmp_path: Path):
    both = {**good.verl_rows(1)[0], **good.completion()}
    with pytest.raises(InputError, match=r"\(both verl rollouts and OpenAI-compatible responses\)"):
        detect(good.lines(tmp_path / "x.jsonl", [both]))


def test_long_lists_are_cut(tmp_path: Path):
    for at in range(9):
        (tmp_path / f"{at}.json").write_text('{"a": 1}')
        (tmp_path / f"damaged{at}.json").write_text('{"a": 1')
    with pytest.raises(InputError, match="and 6 more, expected"):
        detect(tmp_path)


def test_no_files(tmp_path: Path):
    with pytest.raises(InputError, match="holds no run that is known - got no files"):
        detect(tmp_path)
    with pytest.raises(InputError, match="must be a file or a directory - got neither"):
        detect(tmp_path / "missing")


def test_hidden_files_are_not_looked_at(good, tmp_path: Path):
    good.run("verl rollouts", tmp_path / "run")
    good.run("TRL completions", tmp_path / "run" / ".cache")
    (tmp_path / "run" / ".tmp").write_text("{")
    assert detect(tmp_path / "run").name == "verl rollouts"


def test_a_queue_is_no_file(good, tmp_path: Path):
    """Opening a named pipe would wait for a writer for ever."""
    good.run("verl rollouts", tmp_path / "run")
    os.mkfifo(tmp_path / "run" / "pipe")
    assert detect(tmp_path / "run").name == "verl rollouts"
    with pytest.raises(InputError, match="got neither"):
        detect(tmp_path / "run" / "pipe")


def test_too_many_files(good, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(detection, "MAX_FILES", 1)
    with pytest.raises(InputError, match="got more than 1 files, expected fewer"):
        detect(good.run("verl rollouts", tmp_path / "run"))


def test_a_file_that_may_not_be_read(good, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = good.run("verl rollouts", tmp_path / "run")

    def refuse(self: Path, *_: object, **__: object) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"9\.jsonl: must be a file that can be read - got Permission denied"):
        detect(path / "9.jsonl")


def test_a_damaged_file_beside_good_ones_is_said(good, tmp_path: Path):
    path = good.run("verl rollouts", tmp_path / "run")
    (path / "11.jsonl").write_text(json.dumps(good.verl_rows(11)[0])[:-5] + "\n")
    run = read(path)
    assert len(run.left_out) == 1
    assert "11.jsonl (line 1): every line, or the file as a whole, is JSON" in run.left_out[0]
    with pytest.raises(InputError, match=r"11\.jsonl \(line 1\)"):
        read(path / "11.jsonl")


def test_damage_behind_the_first_line_is_found_when_it_is_read(good, tmp_path: Path):
    path = good.run("verl rollouts", tmp_path / "run")
    rows = (path / "10.jsonl").read_text().splitlines()
    (path / "10.jsonl").write_text("\n".join([rows[0], "x", rows[2], ""]))
    run = read(path)
    assert run.left_out == ()
    with pytest.raises(InputError, match=r"10\.jsonl \(line 2\)"):
        list(run.observations())


def test_the_first_line_may_be_a_request_that_failed(good, tmp_path: Path):
    failed = {"id": "x", "custom_id": "r0", "response": None, "error": {"message": "no"}}
    file = good.lines(tmp_path / "out.jsonl", [failed, failed, good.completion()])
    assert detect(file).name == "OpenAI-compatible responses"
    (observation,) = read(file).observations()
    assert len(observation.samples) == 1
