from __future__ import annotations

import json
import socket
from contextlib import closing

import pytest

from lockstep.cli import _run as run

FEW = ["--prompts", "2", "--n", "4", "--max-tokens", "6"]


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")


def told(capsys) -> dict:
    return json.loads(capsys.readouterr().out)


def last_line(capsys) -> str:
    return capsys.readouterr().out.rstrip().splitlines()[-1]


def test_our_engine_against_our_trainer_is_parity_and_the_last_line_says_so(capsys):
    assert run(["parity", "engine:tiny", *FEW, "--steps", "2"]) == 0
    line = last_line(capsys)
    assert line.startswith("parity: 96 tokens compared over 2 steps, 1 weight updates")


def test_a_fault_is_named_with_its_setting_and_leaves_both_reports(capsys, tmp_path):
    where = tmp_path / "deep" / "report"
    words = ["engine:tiny", "transformers:tiny", "--top-p", "0.7", "--steps", "1", "--output", str(where)]
    assert run(["parity", *words, *FEW]) == 1
    out = capsys.readouterr().out
    assert out.rstrip().splitlines()[-1].startswith("SEM03 (semantics)") and "top_p=1.0" in out
    assert "part of trainer - sampler" in out and "noise floor" in out and str(where / "report.html") in out
    document = json.loads((where / "report.json").read_bytes())
    assert document["findings"][-1]["code"] == "SEM03" and document["standing"] == "fault"
    *parts, total = document["breakdown"]
    assert sum(row["units"] for row in parts) == total["units"]
    assert "SEM03" in (where / "report.html").read_text()


def test_json_is_one_document_and_nothing_else(capsys):
    assert run(["parity", "engine:tiny,weights=lost", "--json", "--steps", "3", *FEW]) == 1
    document = told(capsys)
    assert document["findings"][-1]["code"] == "WGT01" and document["findings"][-1]["step"] == 2
    assert document["facts"]["model"] == "tiny" and document["facts"]["prompts"] == 2
    assert [one["name"] for one in document["said"]] == ["lockstep engine", "lockstep trainer"]
    assert document["floor"]["samples"] == 4 * 8


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["smollm2"], "it begins with a kind"),
        (["engine:tiny", "trainer:smollm2"], "both sides run one model"),
        (["openai:http://127.0.0.1:9/v1"], "both sides run one model"),
        (["engine:no-such-model"], "no such directory"),
        (["engine:tiny,nonsense=1"], "nonsense"),
        (["trainer:tiny"], "it draws the tokens"),
        (["engine:tiny", "--steps", "0"], "out of range"),
        (["engine:tiny", "--temperature", "-1"], "out of range"),
        (["engine:tiny", "--top-p", "2"], "out of range"),
        (["openai:http://127.0.0.1:9/v1", "--model", "tiny"], "it must answer"),
    ],
)
def test_what_cannot_be_used_is_one_clear_line_and_exit_code_2(capsys, words, part):
    assert run(["parity", *words, *FEW]) == 2
    shown = capsys.readouterr()
    assert part in shown.err and "Traceback" not in shown.err and not shown.out


def test_what_software_of_others_raises_is_no_traceback(capsys):
    assert run(["parity", "engine:tiny", "transformers:tiny,attn_implementation=no_such", *FEW]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("lockstep: engine (transformers:tiny") and "raised" in shown.err
    assert "Traceback" not in shown.err


def test_what_cannot_be_begun_leaves_a_report_too_where_one_was_asked_for(capsys, tmp_path):
    assert run(["parity", "trainer:tiny", "--output", str(tmp_path), *FEW]) == 2
    assert "it draws the tokens" in capsys.readouterr().err
    assert "it draws the tokens" in json.loads((tmp_path / "report.json").read_bytes())["error"]


def test_an_endpoint_that_hangs_is_given_up_and_what_was_seen_is_kept(capsys, tmp_path):
    with closing(socket.socket()) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"openai:http://127.0.0.1:{silent.getsockname()[1]}/v1,model=m,timeout=0.3"
        assert run(["parity", address, "--model", "tiny", "--output", str(tmp_path), *FEW]) == 2
    assert last_line(capsys).startswith("stopped before the first step: endpoint")
    document = json.loads((tmp_path / "report.json").read_bytes())
    assert document["standing"] == "stopped" and document["findings"] == [] and "0.3 s" in document["error"]
    assert "stopped before the first step" in (tmp_path / "report.html").read_text()
