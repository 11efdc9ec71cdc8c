"""Runs of every kind come out again bit for bit, from the start and from checkpoints; what was changed is named."""

from __future__ import annotations

import shutil
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lockstep.core import Logprobs, Reward, Span
from lockstep.errors import InputError, Interrupted, ModelError
from lockstep.pipeline import Loop, Parts
from lockstep.pipeline.replay import Options, Replayer
from lockstep.pipeline.replay_result import RULES, Divergence, Replay
from lockstep.trace import RunDirectory, rollouts
from lockstep.trace.rollouts import RolloutRecord

AHEAD = {"kv_cache_gb": 0.01, "max_sequences": 14}
TWO = {"num_minibatches": 2, "checkpoint_every": 2}
SALT, KEEP = {"max_lag": 2, "kv": "salt"}, {"max_lag": 2, "kv": "keep"}
SUMS = {"name": "addition", "low": 1, "high": 4, "held_out": 0.25}  # long prompts, and few: prefixes are found again
KINDS: dict[str, dict[str, Any]] = {
    "synchronous": {},
    "truncated": {"sampling": {"max_tokens": 5, "temperature": 1.2, "top_k": 20, "top_p": 0.9, "min_p": 0.01}},
    "penalised": {"sampling": {"max_tokens": 5, "repetition_penalty": 1.3, "presence_penalty": 0.5}},
    "two minibatches": {"train": TWO},
    "towards a reference": {"loss": {"beta": 0.1, "normalize": "sequence"}, "engine": {**AHEAD, "dtype": "float32"}},
    "salt": {"pipeline": SALT, "engine": AHEAD, "max_steps": 6},
    "keep": {"pipeline": KEEP, "engine": AHEAD, "max_steps": 6, "task": SUMS},
    "recompute": {"pipeline": {"max_lag": 2, "kv": "recompute"}, "engine": AHEAD, "max_steps": 6},
    "everything": {
        "pipeline": {"max_lag": 3, "kv": "keep"},
        "engine": {**AHEAD, "dtype": "float32"},
        "max_steps": 6,
        "train": {**TWO, "checkpoint_every": 3, "max_tokens_per_microbatch": 24},
        "loss": {"type": "ppo", "advantage": "leave_one_out"},
        "corrections": {"type": "token_tis", "cap": 1.01},
        "sampling": {"max_tokens": 5, "top_k": 20},
    },
}

Change = Callable[[RolloutRecord], RolloutRecord]


def nothing(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, (stage, done, total)


def replay(path: Path, *steps: int, **options: bool) -> Replay:
    return Replayer(RunDirectory(path), Options(**options)).replay(steps, nothing)


@pytest.fixture(scope="session")
def recorded(run_loop, tiny_config, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A finished run of a kind, made once, with its checkpoints kept; not to be changed."""
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            path = tmp_path_factory.mktemp("runs") / "run"
            train = {"checkpoint_every": 2, **KINDS[kind].get("train", {}), "keep_checkpoints": 9}
            run_loop(path, tiny_config(**{**KINDS[kind], "train": train}))
            made[kind] = path
        return made[kind]

    return get


@pytest.fixture
def copied(recorded, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of such a run, to be changed; without checkpoints, so that every step is executed."""

    def get(kind: str, *, checkpoints: bool = False) -> Path:
        ignored = None if checkpoints else shutil.ignore_patterns("checkpoints")
        shutil.copytree(recorded(kind), tmp_path / "copy", ignore=ignored)
        return tmp_path / "copy"

    return get


def alter(path: Path, step: int, row: int, change: Change) -> None:
    """Change one row of a step's rollouts."""
    file = RunDirectory(path).rollouts_file(step)
    records = rollouts.read(file)
    rollouts.write(file, [*records[:row], change(records[row]), *records[row + 1 :]])


def flip(values: np.ndarray, at: int, bit: int = 0) -> np.ndarray:
    flipped = values.copy()
    flipped.view(np.uint32)[at] ^= np.uint32(1 << bit)
    return flipped


def flipped_logprob(at: int, bit: int = 0) -> Change:
    def change(record: RolloutRecord) -> RolloutRecord:
        logprobs = record.rollout.sampler_logprobs
        changed = Logprobs(flip(logprobs.values, at, bit), logprobs.contract)
        return replace(record, rollout=replace(record.rollout, sampler_logprobs=changed))

    return change


def divergence(path: Path, *steps: int, **options: bool) -> Divergence:
    found = replay(path, *steps, **options)
    assert not found.equal and found.divergence is not None, "it came out the same"
    assert str(found.divergence) in found.summary()
    return found.divergence


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_comes_out_again(recorded, kind: str) -> None:
    path = recorded(kind)
    lines = RunDirectory(path).metrics()
    found = replay(path, from_start=True)
    assert found.equal, found.summary()
    assert found.starts == ("the initial model and its warm start",)
    assert [step.step for step in found.steps] == [line["step"] for line in lines]
    assert [step.digest for step in found.steps] == [line["weight_digest"] for line in lines]
    assert [step.tokens for step in found.steps] == [line["parity/num_tokens"] for line in lines]
    count = len(lines)
    assert found.summary() == (
        f"{count} of {count} steps replayed: tokens, logprobs and weights are the same, bit for bit"
    )


@pytest.mark.parametrize("kind", ["salt", "keep", "recompute", "everything"])
def test_asynchronous_runs_are_what_they_are_for(recorded, kind: str) -> None:
    """The runs above hold stale tokens, sequences of several versions and, where keys are kept, keys of older ones."""
    run = RunDirectory(recorded(kind))
    every = [record.rollout for step in run.rollout_steps() for record in run.rollouts(step)]
    assert any(len(set(r.provenance.weight_version.tolist())) > 1 for r in every)
    assert max(line["lag_max"] for line in run.metrics()) > 0
    if kind == "keep":
        assert any(
            r.provenance.spans[0].version < r.provenance.weight_version.min() for r in every if r.provenance.spans
        )
    if kind == "everything":
        assert any(line["corrections/frac_capped"] > 0 for line in run.metrics())


@pytest.mark.parametrize("kind", ["synchronous", "two minibatches", "towards a reference", "salt", "everything"])
def test_single_steps_start_from_the_nearest_checkpoint(recorded, kind: str) -> None:
    path = recorded(kind)
    every = RunDirectory(path).config().train.checkpoint_every
    last = RunDirectory(path).config().max_steps
    found = replay(path, last)
    assert found.equal, found.summary()
    assert found.starts == (f"the checkpoint of step {(last - 1) // every * every}",)
    assert [step.step for step in found.steps] == [last]
    assert replay(path, last, from_start=True).equal


@pytest.mark.parametrize("step", range(2, 7))
def test_keys_kept_across_a_checkpoint_are_made_again(recorded, step: int) -> None:
    """A checkpoint that lacks weights whose keys a later prompt found is passed over, and the notes say so."""
    path = recorded("keep")
    number = (step - 1) // 2 * 2
    found = replay(path, step)
    assert found.equal, found.summary()
    passed_over = any(f"step_{number} is passed over: rollouts after it refer" in note for note in found.notes)
    assert passed_over == (found.starts != (f"the checkpoint of step {number}",))


def test_a_later_checkpoint_is_taken_where_it_saves_steps(recorded) -> None:
    found = replay(recorded("salt"), 1, 6)
    assert found.equal and found.starts == ("the checkpoint of step 0", "the checkpoint of step 4")
    assert replay(recorded("salt"), 1, 3, 4).starts == ("the checkpoint of step 0", "the checkpoint of step 2")
    assert replay(recorded("salt"), 2, 1, 2).asked == (1, 2)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=st.sets(st.integers(1, 6), min_size=1), from_start=st.booleans())
def test_any_selection_of_steps_is_the_same(recorded, asked: set[int], from_start: bool) -> None:
    found = replay(recorded("everything"), *asked, from_start=from_start)
    assert found.equal and [step.step for step in found.steps] == sorted(asked)


def test_an_engine_of_its_own_process_leaves_a_run_that_comes_out_again(run_loop, tiny_config, tmp_path: Path) -> None:
    config = tiny_config(pipeline={"max_lag": 1, "executor": "processes"}, train={"checkpoint_every": 4})
    run_loop(tmp_path / "run", config)
    found = replay(tmp_path / "run", from_start=True)
    assert found.equal and len(found.steps) == 4, found.summary()


def test_an_interrupted_run_and_its_resumption(run_loop, tiny_config, tmp_path: Path) -> None:
    config = tiny_config(pipeline=SALT, engine=AHEAD, max_steps=6, train={"checkpoint_every": 2})

    def stop(parts: Parts, running: Loop) -> None:
        real = parts.trainer.step

        def step(*arguments: Any) -> Any:
            running._stop.requested = parts.trainer.version.number == 12 + 2
            return real(*arguments)

        parts.trainer.step = step  # type: ignore[method-assign]

    with pytest.raises(Interrupted, match="after 3 steps: those up to step 2 are kept, --resume does the others again"):
        run_loop(tmp_path / "run", config, edit=stop)
    before = replay(tmp_path / "run", from_start=True)
    assert before.equal and before.asked == (1, 2, 3)
    run_loop(tmp_path / "run", config, resume=True)
    after = replay(tmp_path / "run", from_start=True)
    assert after.equal and after.asked == (1, 2, 3, 4, 5, 6)


@pytest.mark.parametrize("kind", ["synchronous", "salt"])
def test_one_flipped_bit_of_a_logprob_is_named(copied, kind: str) -> None:
    path = copied(kind)
    alter(path, 3, 5, flipped_logprob(1))
    record = RunDirectory(path).rollouts(3)[5]
    found = divergence(path)
    assert (found.step, found.what, found.rollout_id) == (3, "logprob", record.rollout.id)
    assert found.place is not None
    assert (found.place.index, found.place.position) == (1, len(record.rollout.prompt_ids) + 1)
    assert found.place.version == record.rollout.provenance.weight_version[1]
    assert found.place.path == "decode"
    (bits,) = struct.unpack("<I", struct.pack("<f", record.rollout.sampler_logprobs.values[1]))
    assert f"0x{bits:08x}" in found.expected and f"0x{bits ^ 1:08x}" in found.got
    assert replay(path, 1, 2).equal, "what comes before is as it was"
    assert divergence(path, 4) == found, "it is named on the way, too"


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_is_named(recorded, tmp_path_factory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("flipped") / "run"
    shutil.copytree(recorded("salt"), path)
    step, row, bit = (data.draw(st.integers(*bounds)) for bounds in ((1, 6), (0, 11), (0, 31)))
    rollout = RunDirectory(path).rollouts(step)[row].rollout
    at = data.draw(st.integers(0, len(rollout.token_ids) - 1))
    alter(path, step, row, flipped_logprob(at, bit))
    found = divergence(path, step)
    assert found.place is not None
    assert (found.step, found.what, found.rollout_id, found.place.index) == (step, "logprob", rollout.id, at)


@pytest.mark.parametrize("kind", ["synchronous", "keep", "penalised"])
def test_another_token_is_named(copied, kind: str) -> None:
    def change(record: RolloutRecord) -> RolloutRecord:
        ids = record.rollout.token_ids.copy()
        ids[0] = (ids[0] + 1) % 40
        return replace(record, rollout=replace(record.rollout, token_ids=ids))

    path = copied(kind)
    alter(path, 2, 4, change)
    found = divergence(path)
    assert (found.step, found.what, found.place is not None and found.place.index) == (2, "token", 0)
    assert found.rollout_id == RunDirectory(path).rollouts(2)[4].rollout.id


def test_a_token_outside_its_support_is_named(copied) -> None:
    def change(record: RolloutRecord) -> RolloutRecord:
        support = record.rollout.support
        assert support is not None
        kept = support.ids[: support.offsets[1]].tolist()
        ids = record.rollout.token_ids.copy()
        ids[0] = next(i for i in range(40) if i not in kept)
        return replace(record, rollout=replace(record.rollout, token_ids=ids))

    path = copied("truncated")
    alter(path, 2, 4, change)
    found = divergence(path)
    assert (found.step, found.what) == (2, "rollouts")
    assert "outside its own support" in found.got


def test_another_support_is_named(copied) -> None:
    def change(record: RolloutRecord) -> RolloutRecord:
        support = record.rollout.support
        assert support is not None
        ids = support.ids.copy()
        spare = next(i for i in range(40) if i not in ids[: support.offsets[1]])
        at = int(np.flatnonzero(ids[: support.offsets[1]] != record.rollout.token_ids[0])[0])
        ids[at] = spare
        return replace(record, rollout=replace(record.rollout, support=replace(support, ids=ids)))

    path = copied("truncated")
    records = RunDirectory(path).rollouts(1)
    row = next(i for i, r in enumerate(records) if r.rollout.support is not None and r.rollout.support.offsets[1] > 1)
    alter(path, 1, row, change)
    assert divergence(path).what == "support"


def test_another_advantage_is_named(copied) -> None:
    path = copied("salt")
    alter(path, 4, 7, lambda r: replace(r, advantage=float(np.nextafter(np.float32(r.advantage), np.float32(9)))))
    found = divergence(path)
    assert (found.step, found.what) == (4, "advantage")
    assert found.rollout_id == RunDirectory(path).rollouts(4)[7].rollout.id


def test_another_reward_is_named_through_its_advantage(copied) -> None:
    def change(record: RolloutRecord) -> RolloutRecord:
        assert record.reward is not None
        return replace(record, reward=Reward(record.rollout.id, 0.5, {}))

    path = copied("synchronous")
    alter(path, 2, 0, change)
    assert (divergence(path).step, divergence(path).what) == (2, "advantage")
    alter(path, 2, 0, lambda r: replace(r, reward=Reward(r.rollout.id, float("nan"), {})))
    assert "finite" in divergence(path).got


def test_another_digest_is_named(copied) -> None:
    path = copied("salt")
    file = RunDirectory(path).metrics_file
    lines = [orjson.loads(line) for line in file.read_bytes().splitlines()]
    true = lines[2]["weight_digest"]
    lines[2]["weight_digest"] = "9f" * 32
    file.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    found = divergence(path)
    assert (found.step, found.what, found.rollout_id) == (3, "weights", "")
    assert true in found.got and "9f" * 32 in found.expected
    assert found == divergence(path, 5), "on the way to a later step, too"


def test_another_trainer_logprob_is_named(copied) -> None:
    def change(record: RolloutRecord) -> RolloutRecord:
        logprobs = record.trainer_logprobs
        assert logprobs is not None
        return replace(record, trainer_logprobs=Logprobs(flip(logprobs.values, 0), logprobs.contract))

    path = copied("salt")
    alter(path, 5, 2, change)
    found = divergence(path)
    assert (found.step, found.what, found.place is not None and found.place.index) == (5, "trainer logprob", 0)
    alter(path, 4, 2, lambda r: replace(r, trainer_logprobs=None))
    assert (divergence(path).step, divergence(path).expected) == (4, "none")


def test_swapped_rollouts_are_named(copied) -> None:
    path = copied("synchronous")
    run = RunDirectory(path)
    swap(run.rollouts_file(2), run.rollouts_file(3))
    found = divergence(path)
    assert (found.step, found.what) == (2, "rollouts")
    assert "step 3" in found.got and "step 2" in found.expected


@pytest.mark.parametrize("kind", ["synchronous", "salt"])
def test_swapped_rollouts_that_claim_their_new_step_are_named_by_their_weights(copied, kind: str) -> None:
    path = copied(kind)
    run = RunDirectory(path)
    last = run.config().max_steps
    swap(run.rollouts_file(1), run.rollouts_file(last))
    for step in (1, last):
        rollouts.write(run.rollouts_file(step), [replace(record, step=step) for record in run.rollouts(step)])
    found = divergence(path)
    assert (found.step, found.what) == (1, "rollouts")
    assert "weight version" in found.got


def swap(a: Path, b: Path) -> None:
    data = a.read_bytes(), b.read_bytes()
    a.write_bytes(data[1])
    b.write_bytes(data[0])


def test_a_rollout_too_few_is_named(copied) -> None:
    path = copied("synchronous")
    file = RunDirectory(path).rollouts_file(2)
    rollouts.write(file, rollouts.read(file)[:-1])
    found = divergence(path)
    assert (found.step, found.what, found.got) == (2, "rollouts", "11 rollouts of step 2")


def test_spans_that_cannot_be_true_are_named(copied) -> None:
    def change(record: RolloutRecord) -> RolloutRecord:
        origin = record.rollout.provenance
        version = int(origin.weight_version[0])
        return replace(
            record, rollout=replace(record.rollout, provenance=replace(origin, spans=(Span(0, 2, version),)))
        )

    path = copied("synchronous")
    alter(path, 1, 3, change)
    found = divergence(path)
    assert (found.step, found.what) == (1, "rollouts")
    assert "the spans run every row" in found.got


def test_rows_in_another_order_are_other_weights(copied) -> None:
    """Gradients are sums in the order of the batch; tokens and logprobs do not mind."""
    path = copied("synchronous")
    for step in (1, 2):
        file = RunDirectory(path).rollouts_file(step)
        rollouts.write(file, rollouts.read(file)[::-1])
    assert divergence(path).what == "weights"


def test_a_damaged_checkpoint_is_passed_over(copied) -> None:
    path = copied("synchronous", checkpoints=True)
    file = path / "checkpoints" / "step_2" / "master.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    found = replay(path, 4)
    assert found.equal and found.starts == ("the checkpoint of step 0",)
    assert any("step_2" in note and "SHA-256" in note for note in found.notes)


def test_a_checkpoint_of_another_run_is_passed_over(copied, recorded) -> None:
    path = copied("synchronous", checkpoints=True)
    shutil.rmtree(path / "checkpoints" / "step_2")
    shutil.copytree(recorded("penalised") / "checkpoints" / "step_2", path / "checkpoints" / "step_2")
    found = replay(path, 4)
    assert found.equal and found.starts == ("the checkpoint of step 0",)
    assert any("step_2 is passed over: it holds version 14@" in note for note in found.notes)


def test_a_checkpoint_will_not_do_if_later_rollouts_refer_to_older_weights(recorded) -> None:
    """Within one run nothing is in flight at a checkpoint; so one is put where it would not have been."""
    replayer = Replayer(RunDirectory(recorded("everything")), Options())
    published = replayer.published
    run = RunDirectory(recorded("everything"))
    stale = [
        step
        for step in range(1, 6)
        if any(
            min(r.rollout.provenance.weight_version) < published[step].number
            for later in range(step + 1, 7)
            for r in run.rollouts(later)
        )
    ]
    assert stale and 3 not in stale
    for step in range(1, 6):
        assert replayer._starts._reaches_back(step, published[step].number) == (step in stale)


def test_another_model_is_refused(copied) -> None:
    path = copied("synchronous")
    file = RunDirectory(path).manifest_file
    manifest = orjson.loads(file.read_bytes())
    manifest["model"]["digest"] = "00" * 32
    file.write_bytes(orjson.dumps(manifest))
    with pytest.raises(InputError, match="begins with the weights that the run began with"):
        replay(path)


def test_what_differs_from_the_manifest_is_said(copied) -> None:
    path = copied("synchronous")
    file = RunDirectory(path).manifest_file
    manifest = orjson.loads(file.read_bytes())
    manifest["versions"]["torch"] = "1.0"
    manifest["machine"] |= {"cpu": "Abacus", "memory_gib": 0.1, "platform": "Linux 0.1"}
    manifest["resumed"] = [
        {"at": "", "after_step": 2, "changed": {"machine.cores": [1, 2], "machine.platform": [1, 2]}}
    ]
    file.write_bytes(orjson.dumps(manifest))
    notes = replay(path, 1).notes
    assert len(notes) == 3
    assert notes[0].startswith("versions.torch is ") and "was 1.0 in the run" in notes[0]
    assert "was Abacus in the run" in notes[1]
    assert notes[2] == "the run went on after step 2 with other machine.cores"
    assert not replay(copied_back(path, manifest), 1).notes


def copied_back(path: Path, manifest: dict[str, Any]) -> Path:
    """The run with nothing in its manifest that can be compared."""
    kept = {key: value for key, value in manifest.items() if key not in ("resumed", "threads")}
    from lockstep.trace.manifest import machine, versions

    kept |= {"versions": versions(), "machine": machine()}
    RunDirectory(path).manifest_file.write_bytes(orjson.dumps(kept))
    return path


@pytest.mark.parametrize("steps", [(0,), (5,), (1, 99)])
def test_steps_that_never_happened(recorded, steps: Sequence[int]) -> None:
    with pytest.raises(InputError, match=r"a step that is replayed is one of the run - got .*, expected 1 to 4"):
        replay(recorded("synchronous"), *steps)


def test_a_missing_or_damaged_rollout_file(copied) -> None:
    path = copied("synchronous")
    file = RunDirectory(path).rollouts_file(3)
    data = file.read_bytes()
    file.write_bytes(data[:-100])
    with pytest.raises(InputError, match="must be a rollout file"):
        replay(path)
    file.unlink()
    with pytest.raises(InputError, match="step_000003"):
        replay(path)
    assert replay(path, 1, 2).equal


def test_a_directory_without_steps(tmp_path: Path, tiny_config) -> None:
    with pytest.raises(InputError, match=r"config\.toml"):
        Replayer(RunDirectory(tmp_path), Options())
    with RunDirectory.start(tmp_path / "run", tiny_config()):
        pass
    with pytest.raises(InputError, match="a replay needs every step from the first"):
        Replayer(RunDirectory(tmp_path / "run"), Options())


def test_a_model_that_is_gone(copied) -> None:
    path = copied("synchronous")
    file = RunDirectory(path).config_file
    file.write_text(file.read_text().replace('model = "tiny"', 'model = "no-such-model"'))
    with pytest.raises(ModelError, match="no-such-model"):
        Replayer(RunDirectory(path), Options())


def test_nothing_is_written(copied) -> None:
    path = copied("everything", checkpoints=True)
    before = state(path)
    for options in ({}, {"from_start": True}, {"rewards": True}):
        assert replay(path, **options).equal
    alter(path, 3, 0, flipped_logprob(0))
    altered = state(path)
    divergence(path)
    assert state(path) == altered != before


def state(path: Path) -> dict[str, tuple[int, bytes]]:
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


@pytest.fixture
def rewarding(run_loop, tiny_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Any]]:
    """A run with a reward function of a module, and the module."""
    (tmp_path / "taste.py").write_text(
        "calls = []\ndef length(task, rollout):\n    calls.append(rollout.id)\n    return len(rollout.text) / 8\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    task = {"name": "reverse", "length": 2, "letters": 4, "held_out": 0.25, "reward": "taste.length"}
    run_loop(tmp_path / "run", tiny_config(task=task, max_steps=2))
    yield tmp_path / "run", sys.modules["taste"]
    del sys.modules["taste"]


def test_rewards_are_given_again_only_if_asked_for(rewarding) -> None:
    path, taste = rewarding
    calls = len(taste.calls)
    assert replay(path).equal and len(taste.calls) == calls
    found = replay(path, rewards=True)
    assert found.equal and len(taste.calls) == calls + 24
    assert [step.rewards is not None and step.rewards.graded for step in found.steps] == [12, 12]
    assert found.summary().splitlines()[1] == "rewards and advantages: 24 of 24 rollouts are graded the same again"


def test_a_reward_function_that_changed_is_a_finding_and_no_divergence(rewarding, monkeypatch) -> None:
    path, taste = rewarding
    monkeypatch.setattr(taste, "length", lambda task, rollout: None if rollout.id == "2/1/3" else len(rollout.text) / 8)
    found = replay(path, rewards=True)
    assert found.equal
    assert found.summary().splitlines()[1].startswith("rewards: 1 of 24 are others now")
    assert "the reward function gives others now" in found.summary()
    assert "rollout 2/1/3, None where" in found.summary()


def test_a_reward_function_that_is_not_deterministic_is_named(rewarding, monkeypatch) -> None:
    path, taste = rewarding
    calls: list[int] = []

    def moody(task: Any, rollout: Any) -> float:
        calls.append(1)
        return float(len(calls))

    monkeypatch.setattr(taste, "length", moody)
    found = replay(path, 2, rewards=True)
    assert found.equal
    assert "12 of 12 are others now" in found.summary()
    assert "the reward function is not deterministic" in found.summary()


def test_tasks_that_changed_are_refused_only_for_rewards(copied) -> None:
    path = copied("synchronous", checkpoints=True)
    file = RunDirectory(path).config_file
    file.write_text(file.read_text().replace("letters = 4", "letters = 9"))
    assert replay(path, 3).equal, "from a checkpoint no task is needed"
    with pytest.raises(InputError, match="rewards are given again for the tasks of the run"):
        replay(path, 3, rewards=True)


def test_every_divergence_reads_as_a_message() -> None:
    for what in RULES:
        found = Divergence(3, what, "1.0", "2.0", "Look there", "3/0/1")
        assert str(found) == f"{what} (step 3, rollout 3/0/1): {RULES[what]} - got 1.0, expected 2.0. Look there."
        plain = Replay((3,), (), ("the start",), found).plain()
        assert plain["equal"] is False and str(found) in plain["summary"]


@pytest.mark.slow
def test_a_hundred_asynchronous_steps_come_out_again(run_loop, tiny_config, tmp_path: Path) -> None:
    engine = {"kv_cache_gb": 0.01, "max_sequences": 14}
    config = tiny_config(max_steps=100, pipeline=KEEP, engine=engine, train={"checkpoint_every": 40})
    run_loop(tmp_path / "run", config)
    found = replay(tmp_path / "run", from_start=True)
    assert found.summary().startswith("100 of 100 steps replayed: tokens, logprobs and weights are the same")
