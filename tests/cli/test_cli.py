"""The command line as a user meets it: exit codes, one message instead of a traceback, nothing but JSON with --json."""

from __future__ import annotations

import json

import pytest


def test_help_needs_no_torch_and_lists_the_commands(lockstep) -> None:
    done = lockstep("--help")
    assert done.returncode == 0
    for name in ("train", "sample", "models", "doctor"):
        assert name in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["trian"], 'Did you mean "train"'),
        (["train", "--optim.lrr", "3"], "Did you mean optim.lr."),
        (["train", "max_step=3"], "Did you mean max_steps."),
        (["train", "--max_steps"], "a key needs a value"),
        (["train", "-c", "nowhere.toml"], "config (nowhere.toml)"),
        (["train", "model=no-such-model"], "no-such-model"),
        (["train", "task.name=adition"], "Did you mean addition"),
        (["train", "--resume", "--fresh"], "a run is continued or begun"),
        (["train", "--resume", "output_dir=empty"], "--resume continues a run that is there"),
        (["train", "model=tiny", "task.name=reverse", "sampling.max_tokens=4000"], "must fit the context"),
        (["train", "model=tiny", "task.name=reverse", "device=abacus"], "device (abacus)"),
        (["train", "model=tiny", "task.name=reverse", "task.reward=nowhere.f"], "nowhere"),
        (["sample", "tiny", "", "--raw"], "a prompt has tokens"),
        (["sample", "tiny", "abc", "--temperature", "-1"], "sampling (temperature)"),
        (["sample", "tiny", "a" * 300], "context"),
        (["models", "pull", "gpt5"], "gpt5"),
    ],
)
def test_a_mistake_gets_one_message_and_exit_code_2(lockstep, arguments: list[str], says: str) -> None:
    done = lockstep(*arguments)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_dry_run_prints_a_configuration_that_loads_and_writes_nothing(lockstep, recipe, tmp_path) -> None:
    done = lockstep("train", "-c", recipe, "--dry-run", "--optim.lr", "2e-4")
    assert done.returncode == 0
    again = tmp_path / "again.toml"
    again.write_text(done.stdout)
    assert lockstep("train", "-c", again, "--dry-run").stdout.splitlines()[2:] == done.stdout.splitlines()[2:]
    assert "lr = 0.0002" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_json_is_alone_on_stdout_and_a_second_run_needs_a_word(lockstep, recipe, tmp_path) -> None:
    done = lockstep("train", "-c", recipe, "--json", "max_steps=1")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["outcome"] == "finished"
    assert summary["parity_max"] == 0.0
    assert (tmp_path / "runs" / "quick" / "report.html").stat().st_size > 10_000
    again = lockstep("train", "-c", recipe, "--json", "max_steps=1")
    assert (again.returncode, again.stdout) == (2, "")
    assert "--resume" in again.stderr
    fresh = lockstep("train", "-c", recipe, "--plain", "--fresh", "max_steps=1")
    assert fresh.returncode == 0, fresh.stderr
    assert "quick.1" in fresh.stderr
    assert (tmp_path / "runs" / "quick.1" / "metrics.jsonl").exists()
    assert fresh.stdout.rstrip().endswith("report.html")


def test_sample_adjusts_logits_and_scores_the_prompt(lockstep) -> None:
    asked = ("sample", "tiny", "abc", "--max-tokens", "5", "--temperature", "0", "--json")
    (plain,) = json.loads(lockstep(*asked).stdout)
    penalties = ("--repetition-penalty", "1.5", "--presence-penalty", "1", "--frequency-penalty", "0.5")
    done = lockstep(*asked, *penalties, "--prompt-logprobs")
    assert done.returncode == 0, done.stderr
    (rollout,) = json.loads(done.stdout)
    assert (plain["contract"]["adjustments"], plain["prompt_logprobs"]) == ("", None)
    said = "repetition_penalty=1.5,frequency_penalty=0.5,presence_penalty=1.0"
    assert (rollout["contract"]["adjustments"], rollout["contract"]["mode"]) == (said, "processed")
    assert len(rollout["prompt_logprobs"]) == len(rollout["prompt_ids"]) - 1


def test_sample_streams_text_and_json_carries_the_contract(lockstep) -> None:
    text = lockstep("sample", "tiny", "abc", "--max-tokens", "5", "--seed", "3")
    assert text.returncode == 0, text.stderr
    (rollout,) = json.loads(lockstep("sample", "tiny", "abc", "--max-tokens", "5", "--seed", "3", "--json").stdout)
    assert rollout["text"] == text.stdout.removesuffix("\n")
    assert rollout["contract"]["mode"] == "processed"
    assert len(rollout["logprobs"]) == len(rollout["token_ids"]) == len(rollout["path"])


def test_doctor_says_what_decides_the_bits(lockstep) -> None:
    done = lockstep("doctor")
    assert done.returncode == 0, done.stderr
    assert "rows are invariant here" in done.stdout
    assert "bfloat16: attention" in done.stdout
