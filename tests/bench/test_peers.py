"""The scripts that every peer's own Python runs, as far as they run in ours."""

from __future__ import annotations

import ast
import importlib.util
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.environment import PEERS
from lockstep.adapters.engines.process import Program, Worker
from lockstep.checks.last_integer import LastInteger
from lockstep.core import Task
from lockstep.models.checkpoint import read_parameters
from lockstep.models.tiny import TINY, build_random

SHARED = {"protocol", "reward", "pacer", "gguf_file"}
LIBRARIES = {
    "vllm_engine": {"vllm", "torch"},
    "transformers_generate": {"transformers", "torch"},
    "trl_trainer": {"trl", "transformers", "datasets", "torch"},
    "llama_decode": {"llama_cpp"},
    "gguf_file": {"gguf", "numpy"},
}


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"bench_peer_{name}", PEERS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("file", sorted(PEERS.glob("*.py")), ids=lambda file: file.stem)
def test_a_peer_imports_nothing_that_its_environment_lacks(file):
    tree = ast.parse(file.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    allowed = SHARED | LIBRARIES.get(file.stem, set())
    if file.stem.startswith("lockstep_"):
        allowed |= {"lockstep", "torch", "lockstep_engine"}
    assert {name.partition(".")[0] for name in names} <= allowed | sys.stdlib_module_names


# -- the reward ------------------------------------------------------------------------------------------------------

exact_integer = load("reward").exact_integer


@given(st.integers(-50, 50), st.integers(-50, 50), st.sampled_from(["{}", "2 + 3 = {}.", "**{}**", "It is {}!\n"]))
def test_the_reward_is_the_check_of_the_recipe(right, said, form):
    text = form.format(said)
    verdict = LastInteger().check(Task("t", "p", str(right)), text)
    assert exact_integer([text], [str(right)]) == [float(verdict.status == "pass")]


def test_the_reward_reads_chats_and_texts():
    chat = [{"role": "assistant", "content": "5"}]
    assert exact_integer([chat, "no number", "4, no: 5"], ["5", "5", "5"], other=[1, 2, 3]) == [1.0, 0.0, 1.0]


# -- the GGUF file ---------------------------------------------------------------------------------------------------


def test_rotary_order_pairs_the_halves_of_each_head():
    rows = np.arange(12, dtype=np.uint16).reshape(12, 1)
    ordered = load("gguf_file").rotary_order(rows, 2)
    assert ordered[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return build_random(tmp_path_factory.mktemp("models") / "random", TINY, seed=3, dtype=torch.bfloat16)


def test_a_gguf_file_holds_the_weights_to_the_bit(network, tmp_path):
    import gguf

    target = tmp_path / "folder" / "model.gguf"
    load("gguf_file").convert(network, target)
    params = read_parameters(network, TINY, torch.bfloat16)
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(target).tensors}
    embedding = torch.from_numpy(found["token_embd.weight"].data.copy()).view(torch.bfloat16)
    assert torch.equal(embedding.reshape(params["embedding"].shape), params["embedding"])
    norm = torch.from_numpy(found["output_norm.weight"].data.copy())
    assert torch.equal(norm, params["norm"].float())
    assert len(found) == 2 + 9 * TINY.num_layers
    assert [child.name for child in target.parent.iterdir()] == ["model.gguf"]
    before = target.stat().st_mtime_ns
    load("gguf_file").convert(network, target)
    assert target.stat().st_mtime_ns == before, "it is made once"


# -- contestants on a tiny model -------------------------------------------------------------------------------------


def contestant(name: str, tmp_path, **settings: object) -> Worker:
    program = Program(name, sys.executable, PEERS / f"{name}.py", settings, {"OMP_NUM_THREADS": "1"}, 120, 120)  # type: ignore[arg-type]
    return Worker(program, tmp_path / f"{name}.log")


def test_engine_and_transformers_draw_what_they_are_asked(tiny, tmp_path):
    ask = {"prompts": [[5, 6, 7], [8, 9]], "temperature": 0.8, "seed": 1}
    for name in ("lockstep_engine", "transformers_generate"):
        with contestant(name, tmp_path, model=str(tiny.path), threads=1, max_tokens=6, logprobs=True) as one:
            assert "torch" in one.start()
            answer = one.ask(**ask)
            assert [len(tokens) for tokens in answer["tokens"]] == [6, 6]
            assert all(value < 0 for each in answer["logprobs"] for value in each)
            assert answer["seconds"] > 0


def test_a_held_loop_saves_before_between_and_after_its_steps(scripted, tmp_path):
    body = (
        f"sys.path.insert(0, {str(PEERS)!r})"
        """
from pacer import Pacer
channel = Channel()
channel.asked()
saved = []
pacer = Pacer(channel, saved.append)
channel.answer(versions={"a": "b"})
for step in range(2):
    pacer.wait()
    time.sleep(0.01)
    pacer.done(step=step, saved=len(saved))
pacer.wait()
"""
    )
    with Worker(scripted(body), tmp_path / "log") as one:
        one.start()
        assert one.ask(do="save", path="x") == {"saved": "x"}
        first = one.ask(do="step")
        assert (first["step"], first["saved"]) == (0, 1) and 0.01 <= first["seconds"] < 5.0
        assert one.ask(do="save", path="y") == {"saved": "y"}
        assert one.ask(do="step")["saved"] == 2
        assert one.ask(do="save", path="z") == {"saved": "z"}


def test_the_trainer_steps_and_saves_when_it_is_told(tiny, tmp_path):
    from bench import recipe
    from bench.options import OURS, Options

    options = Options(model=str(tiny.path), threads=1, trial=True)
    program = recipe.trainer(OURS, recipe.configuration(options, 3, seed=0), options)
    with Worker(program, tmp_path / "log") as one:
        assert "lockstep" in one.start()
        for _ in range(2):
            answer = one.ask(do="step")
            assert answer["seconds"] > 0 and answer["parity"] == 0.0 and 0 < answer["mean_tokens"] <= 8
        assert one.ask(do="save", path=str(tmp_path / "weights")) == {"saved": str(tmp_path / "weights")}
        assert one.ask(do="step")["seconds"] > 0
        last = str(tmp_path / "last")
        assert one.ask(do="save", path=last) == {"saved": last}, "after the last step too"
    problems = [[[{"role": "user", "content": "1 + 1?"}], "2"], [[{"role": "user", "content": "2 + 1?"}], "3"]]
    with contestant("lockstep_examiner", tmp_path, threads=1, max_tokens=4, problems=problems) as examiner:
        examiner.start()
        found = examiner.ask(path=str(tmp_path / "weights"))
        assert found["total"] == 2 and 0 <= found["passed"] <= 2
