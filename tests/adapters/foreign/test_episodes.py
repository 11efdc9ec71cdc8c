"""prime-rl's saved episodes: every sampled message with the way to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lockstep.adapters.foreign.detection import read
from lockstep.errors import InputError
from lockstep.parity.observation import Sample


def only(good, tmp_path: Path, *episodes: dict[str, Any]) -> list[Sample]:
    (observation,) = read(good.lines(tmp_path / "traces.jsonl", list(episodes))).observations()
    return list(observation.samples)


def changed(good, node: int, **change: Any) -> dict[str, Any]:
    """An episode with columns of one node changed; None takes them out, as `to_record` does."""
    episode = good.episode()
    nodes = episode["traces"][0]["nodes"]
    nodes[node] = {k: v for k, v in {**nodes[node], **change}.items() if v is not None}
    return episode


def test_messages_are_samples_with_the_way_to_them(good, tmp_path: Path):
    first, second = only(good, tmp_path, good.episode())
    assert (first.id, second.id) == ("e1-t/1", "e1-t/3")
    assert first.prompt_ids.tolist() == [5, 6, 7]  # the template's own token before the answer is no draw
    assert first.token_ids.tolist() == [8, 2]
    assert second.prompt_ids.tolist() == [5, 6, 7, 8, 2, 9, 7]
    assert second.token_ids.tolist() == [10]
    assert first.sampler.tolist() == [-0.25, -0.5]
    assert (first.trainer, first.versions) == (None, None)
    assert (first.text, first.group, first.finish_reason, first.num_cached) == ("4", "g1", "stop", 0)
    assert (second.finish_reason, second.num_cached) == ("length", 5)


def test_parameters_are_said_if_all_of_them_are(good, tmp_path: Path):
    first, second = only(good, tmp_path, good.episode())
    assert first.params is not None
    assert (first.params.temperature, first.params.top_k, first.params.top_p) == (0.7, 0, 1.0)
    assert second.params is None


def test_branches_share_their_root(good, tmp_path: Path):
    episode = changed(good, 3, parent=0)
    first, second = only(good, tmp_path, episode)
    assert second.prompt_ids.tolist() == [5, 6, 7]
    assert first.prompt_ids.tolist() == [5, 6, 7]


@pytest.mark.parametrize(
    ("policy", "versions"),
    [
        ({"start": 4, "end": 4}, [4, 4]),
        ({"start": 4, "end": 5}, None),
        (None, None),
        ({"start": 2**40, "end": 2**40}, None),
    ],
)
def test_versions_are_known_where_the_policy_did_not_change(good, tmp_path: Path, policy: Any, versions: Any):
    first, _ = only(good, tmp_path, good.episode(policy=policy))
    assert (None if first.versions is None else first.versions.tolist()) == versions


def test_what_another_model_sampled_is_left_out(good, tmp_path: Path):
    judged = good.episode("e2")
    judged["traces"][0]["agent"]["trainable"] = False
    assert [s.id for s in only(good, tmp_path, good.episode("e1"), judged)] == ["e1-t/1", "e1-t/3"]


def test_a_relayed_message_has_no_tokens(good, tmp_path: Path):
    first, _ = only(good, tmp_path, changed(good, 1, token_ids=None, mask=None, logprobs=None))
    assert len(first.prompt_ids) == len(first.token_ids) == 0
    assert (first.sampler, first.text) == (None, "4")


def test_a_series_of_another_length_is_kept_for_the_probes(good, tmp_path: Path):
    first, _ = only(good, tmp_path, changed(good, 1, logprobs=[-0.25]))
    assert first.sampler.tolist() == [-0.25]
    first, _ = only(good, tmp_path, changed(good, 1, logprobs=[]))
    assert first.sampler is None


def test_reference_logprobs(good, tmp_path: Path):
    first, _ = only(good, tmp_path, changed(good, 1, reference_logprobs=[-1.0, -2.0]))
    assert first.reference.tolist() == [-1.0, -2.0]


def test_a_failed_episode_has_no_traces(good, tmp_path: Path):
    failed = {**good.episode("e0"), "ok": False, "traces": []}
    assert len(only(good, tmp_path, failed, good.episode())) == 2


def test_content_that_is_parts_is_no_text(good, tmp_path: Path):
    first, _ = only(good, tmp_path, changed(good, 1, message={"role": "assistant", "content": [{"type": "text"}]}))
    assert first.text is None


def test_steps_are_those_of_the_folders(good, tmp_path: Path):
    for step in (2, 11):
        for subset in ("all", "effective"):
            folder = tmp_path / "rollouts" / f"step_{step}"
            good.lines(folder / "train" / subset / "traces.jsonl", [good.episode(f"{subset}{step}")])
        good.lines(folder / "eval" / "all" / "traces.jsonl", [good.episode("eval")])
    run = read(tmp_path)
    assert [(o.step, o.samples[0].id) for o in run.observations()] == [(2, "effective2-t/1"), (11, "effective11-t/1")]


def test_all_is_read_where_no_batch_was_finished(good, tmp_path: Path):
    good.lines(tmp_path / "rollouts" / "step_2" / "train" / "all" / "traces.jsonl", [good.episode()])
    assert [o.step for o in read(tmp_path).observations()] == [2]


def test_elsewhere_the_step_is_when_it_was_dispatched(good, tmp_path: Path):
    (observation,) = read(good.lines(tmp_path / "traces.jsonl", [good.episode()])).observations()
    assert observation.step == 3
    alone = good.episode()
    del alone["run"]
    (observation,) = read(good.lines(tmp_path / "traces.jsonl", [alone])).observations()
    assert observation.step == 1


def test_what_is_allowed(good, tmp_path: Path):
    allows = read(good.run("prime-rl episodes", tmp_path / "run")).allows
    assert allows["structure"].answer == "yes"
    assert allows["mismatch"].answer == "given a reference"
    assert "there are no trainer logprobs here: it has to stand in for the trainer" in allows["mismatch"].why
    assert allows["cache"].why == "what came from the prefix cache is said"


@pytest.mark.parametrize(
    ("node", "change", "words"),
    [
        (
            1,
            {"parent": 1},
            r"column traces\[0\]\.nodes\[1\]\.parent .* got 1, expected null, or the number of an earlier",
        ),
        (1, {"parent": -1}, r"column traces\[0\]\.nodes\[1\]\.parent .* got -1"),
        (1, {"mask": [True]}, r"column traces\[0\]\.nodes\[1\]\.token_ids .* lengths token_ids 3, mask 1"),
        (1, {"mask": [True, False, True]}, r"nodes\[1\]\.mask .* got sampled tokens with others between them"),
        (3, {"logprobs": ["x"]}, r"nodes\[3\]\.logprobs\[0\] .* got text"),
        (0, {"token_ids": [-3]}, r"nodes\[0\]\.token_ids\[0\] .* got -3"),
    ],
)
def test_what_is_wrong_names_line_and_column(good, tmp_path: Path, node: int, change: dict, words: str):
    with pytest.raises(InputError, match=rf"traces\.jsonl \(line 2\): .*{words}"):
        only(good, tmp_path, good.episode(), changed(good, node, **change))
