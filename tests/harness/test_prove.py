"""`lockstep prove` as a user runs it."""

from __future__ import annotations

import json

import pytest

from lockstep.cli import main
from lockstep.cli import prove as cli_prove
from lockstep.harness import prove
from lockstep.harness.draws import Draws


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as left:
        main(["prove", *arguments])
    return int(left.value.code or 0), capsys.readouterr().out


@pytest.mark.slow
def test_schedules_in_processes(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = run(capsys, "schedules", "60", "--workers", "2", "--json")
    found = json.loads(out)
    assert (code, found["schedules"], found["differing"], found["wrong"]) == (0, 60, 0, "")


def test_tokens_of_a_model(
    capsys: pytest.CaptureFixture[str], tmp_path, new_home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCKSTEP_HOME", str(new_home(tmp_path / "home")))
    code, out = run(capsys, "tokens", "2000", "--model", "tiny", "--workers", "2")
    assert code == 0
    assert "0 differing" in out
    assert out.strip().endswith("Nothing was wrong.")


def test_a_difference_ends_it_with_exit_code_1(
    capsys: pytest.CaptureFixture[str], tmp_path, new_home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCKSTEP_HOME", str(new_home(tmp_path / "home")))
    prove._pair.cache_clear()
    one = ("tiny", "bfloat16", 0, 0)
    try:
        assert prove._compare_batch(*one).wrong == ""
        _, trainer = prove._pair("tiny", "bfloat16")
        real = trainer.score

        def moved(rollouts):
            scored = real(rollouts)
            scored[3].values[2] += 1e-6
            return scored

        trainer.score = moved
        monkeypatch.setattr(cli_prove, "_Bar", Silent)
        monkeypatch.setattr(prove, "tokens", lambda *_, **__: iter([prove._compare_batch(*one)]))
        code, out = run(capsys, "tokens", "50000", "--model", "tiny")
    finally:
        prove._pair.cache_clear()
    assert code == 1
    assert "token 2" in out


class Silent:
    """No bar."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __enter__(self):
        return lambda done: None

    def __exit__(self, *_: object) -> None: ...


def test_flips_are_caught(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = run(capsys, "flips", "120")
    assert code == 0
    assert "120 of 120 updates" in out


def test_a_flip_that_is_taken_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lockstep.engine.weights.digest", lambda params: "0" * 64)
    monkeypatch.setattr("lockstep.harness.networks.digest", lambda params: "0" * 64)
    code, out = run(capsys, "flips", "120")
    assert code == 1
    assert "was taken" in out


def test_draws_are_a_function_of_seed_and_purpose() -> None:
    def some(draws: Draws) -> list[object]:
        return [draws.integer(3, 5), draws.integers(4, 9), draws.number(0, 1), draws.chance(0.5), draws.choice("abc"),
                draws.distinct(3, 8)]  # fmt: skip

    assert some(Draws(1, "a")) == some(Draws(1, "a"))
    assert some(Draws(1, "a")) != some(Draws(1, "b"))
    assert all(3 <= Draws(seed, "x").integer(3, 5) <= 5 for seed in range(50))
    assert {Draws(seed, "x").integer(3, 5) for seed in range(50)} == {3, 4, 5}
