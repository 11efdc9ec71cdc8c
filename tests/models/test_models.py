"""`load`: name or path to a model, with a check that tokenizer and network belong together; and the real SmolLM2."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lockstep.errors import ModelError
from lockstep.models import Model, load
from lockstep.models.checkpoint import digest, read_parameters, to_hf
from lockstep.models.tiny import build_random, small


def test_load_gives_architecture_and_tokenizer(tmp_path):
    path = build_random(tmp_path / "model", small("qwen3"))
    model = load(str(path))
    assert isinstance(model, Model)
    assert (model.path, model.arch) == (path, small("qwen3"))
    assert model.tokenizer.decode(model.tokenizer.encode("a b")) == "a b"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vocab_size": 40}, r"the tokenizer must fit the network - got 47, expected ids below 40"),
        ({"model_type": "gpt2"}, "got gpt2, expected one of llama"),
        ({"hidden_size": None}, "hidden_size"),
    ],
)
def test_a_config_that_does_not_fit(change, said, tmp_path):
    path = build_random(tmp_path / "model", small("llama"))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ModelError, match=said):
        load(str(path))


def test_an_eos_outside_the_vocabulary(tmp_path):
    path = build_random(tmp_path / "model", small("llama"))
    (path / "generation_config.json").write_text('{"eos_token_id": [1, 48]}')
    with pytest.raises(ModelError, match="got 48, expected ids below 48"):
        load(str(path))


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_missing_files_are_named(file, tmp_path):
    path = build_random(tmp_path / "model", small("llama"))
    (path / file).unlink()
    with pytest.raises(ModelError, match=rf"model \(.*\): {file} must be there"):
        load(str(path))


def test_an_empty_directory(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json must be there - got an empty directory"):
        load(str(tmp_path))


def test_loading_needs_no_torch(tmp_path):
    path = build_random(tmp_path / "model", small("llama"))
    code = f"import sys; from lockstep.models import load; load({str(path)!r}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.fixture(scope="module")
def smollm2():
    """The real one, from the user's cache; pulled if it is not there."""
    return load("smollm2")


@pytest.mark.model
def test_smollm2_is_what_was_published(smollm2):
    arch = smollm2.arch
    assert (arch.num_layers, arch.hidden_size, arch.num_heads, arch.num_kv_heads) == (30, 576, 9, 3)
    assert (arch.vocab_size, arch.rope_theta, arch.norm_eps, arch.tied) == (49152, 100000.0, 1e-05, True)
    assert smollm2.tokenizer.eos_ids == (2,)
    assert smollm2.tokenizer.vocab_size == 49152
    params = read_parameters(smollm2.path, arch, torch.bfloat16)
    assert digest(params) == "cab252fcdbfcb59b9eb30161f739e17571ec6f8169b03752eaab2f557a26e553"


@pytest.mark.model
def test_smollm2_in_transformers(smollm2):
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(smollm2.path), AutoTokenizer.from_pretrained(smollm2.path)
    tensors = theirs.state_dict()
    for name, tensor in to_hf(read_parameters(smollm2.path, smollm2.arch, torch.bfloat16), smollm2.arch).items():
        assert torch.equal(tensor, tensors[name]), name
    chat = [{"role": "user", "content": "What is 2 + 3? Answer with just the number."}]
    ids = smollm2.tokenizer.encode_prompt(chat)
    assert ids == tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    with torch.no_grad():
        answer = theirs.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :].tolist()
    assert smollm2.tokenizer.decode(answer) == "2 + 3 = 5"  # the permutation and the rotary base are right
    assert answer[-1] in smollm2.tokenizer.eos_ids


@pytest.mark.model
def test_smollm2_tokenizer_splits_as_published(smollm2):
    known = {
        "Hello world": [19556, 905],
        "12345": [33, 34, 35, 36, 37],
        "<|im_start|>user\n": [1, 4093, 198],
        "2 + 3 = 5": [34, 1232, 216, 35, 446, 216, 37],
    }
    for text, ids in known.items():
        assert smollm2.tokenizer.encode(text) == ids, text
        assert smollm2.tokenizer.decode(ids, skip_special=False) == text


@pytest.mark.model
def test_smollm2_can_be_copied_and_written(smollm2, tmp_path):
    copy = Path(shutil.copytree(smollm2.path, tmp_path / "copy", ignore=shutil.ignore_patterns("*.safetensors")))
    assert load(str(copy)).arch == smollm2.arch
    with pytest.raises(ModelError, match="the weights must be there - got no weights"):
        read_parameters(copy, smollm2.arch, torch.bfloat16)
