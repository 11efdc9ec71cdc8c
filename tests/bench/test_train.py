from __future__ import annotations

import orjson
import pytest

from bench import recipe
from bench.contest import Standing
from bench.options import OURS, Options
from bench.referee import Unfair
from bench.train import require_alike, settings, summary

OPTIONS = Options(model="tiny", threads=1)


def test_both_train_on_the_same_problems_with_the_same_settings(monkeypatch):
    monkeypatch.setattr("bench.recipe.program", lambda name, script, peer, told, variables: (script, peer, told))
    config = recipe.configuration(OPTIONS, 3, seed=2)
    script, peer, ours = recipe.trainer(OURS, config, OPTIONS)  # type: ignore[misc]
    assert (script, peer) == ("lockstep_trainer", None)
    script, peer, theirs = recipe.trainer(recipe.TRL, config, OPTIONS)  # type: ignore[misc]
    assert (script, peer, theirs["weights"]) == ("trl_trainer", "trl", "bfloat16")
    told = ours["config"]
    assert told["sampling"]["max_tokens"] == theirs["max_tokens"] == 32
    assert told["optim"]["lr"] == theirs["lr"] == 1e-5 and told["seed"] == theirs["seed"] == 2
    assert (told["num_prompts_per_step"], told["num_generations"]) == (theirs["num_prompts"], 8) == (8, 8)
    assert told["loss"]["normalize"] == "sequence" and told["loss"]["beta"] == 0.0
    assert told["parity"]["gate"], "ours is measured with the gate on"
    assert len(theirs["problems"]) == 24
    held_out = {tuple(map(str, problem[0])) for problem in recipe.examiner(config, OPTIONS)[2]["problems"]}  # type: ignore[index]
    assert len(held_out) == 80
    assert not held_out & {tuple(map(str, problem[0])) for problem in theirs["problems"]}
    orjson.dumps(theirs)


def test_the_order_of_problems_is_that_of_the_loop():
    from lockstep.tasks import batch_of, load_tasks

    config = recipe.configuration(OPTIONS, 2, seed=1)
    tasks = load_tasks(config.task, 1)
    expected = [task.answer for step in range(2) for task in batch_of(tasks, step, 8, 1)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.recipe.program", lambda name, script, peer, told, variables: told)
        told = recipe.trainer(recipe.TRL_MASTERS, config, OPTIONS)
    assert [answer for _, answer in told["problems"]] == expected  # type: ignore[index]
    assert told["weights"] == "float32"  # type: ignore[index]


def standing_of(mean_tokens: float, reward: float, **more: float) -> Standing:
    from pathlib import Path

    from lockstep.adapters.engines.process import Program

    answers = tuple({"seconds": 2.0, "mean_tokens": mean_tokens, "reward": reward, **more} for _ in range(3))
    return Standing(Program("x", Path("x"), Path("x"), {"config": {}, "problems": [], "seed": 0}), {}, answers, 1.0)


def test_a_summary_holds_what_the_steps_were_like():
    found = summary(standing_of(12.5, 0.25, parity=0.0))
    assert found["sanity"] == {"mean_tokens": 12.5, "mean_reward": 0.25, "parity_max": 0.0}
    assert found["settings"] == {"seed": 0} and found["seconds"] == [2.0, 2.0]


def test_other_completions_are_found_out():
    ours = {"lockstep": summary(standing_of(12.0, 0.1))}
    require_alike(ours | {"TRL": summary(standing_of(13.0, 0.2))})
    with pytest.raises(Unfair, match="as long as ours"):
        require_alike(ours | {"TRL": summary(standing_of(8.0, 0.1))})
    with pytest.raises(Unfair, match="earn what ours earn"):
        require_alike(ours | {"TRL": summary(standing_of(12.0, 0.9))})


def test_settings_name_no_place_of_this_machine():
    config = recipe.configuration(OPTIONS, 2, seed=0).model_dump(mode="json")
    assert settings(config)["task"]["reward"] == "bench/peers/reward.py:exact_integer"
    assert str(recipe.RECIPE.parents[1]) not in orjson.dumps(settings(config)).decode()
