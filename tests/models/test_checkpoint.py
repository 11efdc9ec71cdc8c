"""Checkpoints: the two layouts, reading, writing, the digest; every kind of damage is named."""

from __future__ import annotations

import json
import math
import resource
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lockstep.errors import ModelError, StorageError
from lockstep.models import load
from lockstep.models.architecture import FAMILIES
from lockstep.models.checkpoint import all_finite, digest, from_hf, hf_shapes, read_parameters, to_hf, write_model
from lockstep.models.tiny import build_random, random_parameters, small

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Family -> directory of a random model."""
    home = tmp_path_factory.mktemp("models")
    return {family: build_random(home / family, small(family), seed=7) for family in FAMILIES}


@pytest.fixture
def qwen2(built, tmp_path):
    """A copy that may be damaged: the family with biases and a head of its own."""
    return Path(shutil.copytree(built["qwen2"], tmp_path / "qwen2"))


def read(directory, dtype=FLOAT32):
    return read_parameters(directory, load(str(directory)).arch, dtype)


def rewrite(directory, edit):
    """Change the tensors of a checkpoint."""
    tensors = load_file(directory / WEIGHTS)
    edit(tensors)
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


def shard(directory):
    """Split a checkpoint in two, as large models come."""
    tensors = load_file(directory / WEIGHTS)
    names = sorted(tensors)
    weight_map = {name: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in names if weight_map[name] == file}, directory / file)
    (directory / WEIGHTS).unlink()
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weight_map


def same(left, right):
    return list(left) == list(right) and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


@given(
    st.sampled_from(FAMILIES),
    st.booleans(),
    st.sampled_from([1, 2, 3, 6]),
    st.sampled_from([FLOAT32, BFLOAT16, torch.float16]),
    st.integers(0, 99),
)
@settings(max_examples=25)
def test_layouts_are_inverse_bit_for_bit(family, tied, kv_heads, dtype, seed):
    arch = small(family, tied=tied, num_kv_heads=kv_heads, num_layers=1)
    params = {name: tensor.to(dtype) for name, tensor in random_parameters(arch, seed).items()}
    tensors = to_hf(params, arch)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == hf_shapes(arch)
    assert same(from_hf(tensors, arch), params)
    assert same(to_hf(from_hf(tensors, arch), arch), tensors)


def test_hf_tensors_are_views():
    arch = small("qwen2")
    params = random_parameters(arch, 0)
    tensors = to_hf(params, arch)
    params["layers.1.qkv"].zero_()
    assert not tensors["model.layers.1.self_attn.v_proj.weight"].any()
    assert tensors["model.embed_tokens.weight"].data_ptr() == params["embedding"].data_ptr()


def test_rows_are_query_key_value_and_gate_up():
    arch = small("llama")
    params, tensors = random_parameters(arch, 0), to_hf(random_parameters(arch, 0), arch)
    queries, keys = arch.num_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
    key = tensors["model.layers.0.self_attn.k_proj.weight"]
    assert torch.equal(key, params["layers.0.qkv"][queries : queries + keys])
    assert torch.equal(
        tensors["model.layers.0.mlp.up_proj.weight"], params["layers.0.gate_up"][arch.intermediate_size :]
    )


@pytest.mark.parametrize("change", [lambda p: p.pop("norm"), lambda p: p.update(extra=torch.ones(1))])
def test_layouts_refuse_other_names(change):
    arch = small("llama")
    params = random_parameters(arch, 0)
    change(params)
    with pytest.raises(ModelError, match=r"1 (missing \(norm\)|extra \(extra\))"):
        to_hf(params, arch)


def test_layouts_refuse_other_shapes():
    arch = small("llama")
    tensors = to_hf(random_parameters(arch, 0), arch)
    tensors["model.norm.weight"] = torch.ones(arch.hidden_size + 1)
    with pytest.raises(ModelError, match=r"tensor \(model.norm.weight\).*got \(73,\), expected \(72,\)"):
        from_hf(tensors, arch)


@pytest.mark.parametrize("family", FAMILIES)
def test_reads_what_was_built(family, built):
    assert same(read(built[family]), random_parameters(small(family), 7))


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reads_it_too(family, built):
    theirs = AutoModelForCausalLM.from_pretrained(built[family]).state_dict()
    ours = to_hf(read(built[family]), small(family))
    assert set(theirs) - set(ours) <= {"lm_head.weight"}  # tied
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_casts_as_torch_does(built):
    wide, narrow = read(built["llama"]), read(built["llama"], BFLOAT16)
    assert same(narrow, {name: tensor.to(BFLOAT16) for name, tensor in wide.items()})


def test_shards_give_the_same(qwen2):
    whole = read(qwen2)
    shard(qwen2)
    assert same(read(qwen2), whole)


def test_memory_is_our_own(qwen2):
    params = read(qwen2)
    before = digest(params)
    with (qwen2 / WEIGHTS).open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 100_000)
    assert digest(params) == before


def test_redundant_tensors_are_ignored(qwen2, built, tmp_path):
    rewrite(qwen2, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    assert same(read(qwen2), read(built["qwen2"]))
    tied = Path(shutil.copytree(built["llama"], tmp_path / "tied"))
    rewrite(tied, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert same(read(tied), read(built["llama"]))
    rewrite(tied, lambda t: t["lm_head.weight"][3, 5].add_(1.0))
    with pytest.raises(ModelError, match=r"lm_head.weight\): tie_word_embeddings is true"):
        read(tied)


NORM, VALUE = "model.layers.1.input_layernorm.weight", "model.layers.0.self_attn.v_proj.weight"


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda t: t.pop(NORM), rf"1 missing \({NORM}\), expected exactly the 27"),
        (lambda t: t.update(surplus=torch.ones(2)), r"1 extra \(surplus\)"),
        (lambda t: (t.pop(NORM), t.update(surplus=torch.ones(2))), r"1 missing .*; 1 extra"),
        (
            lambda t: t.update({VALUE: t[VALUE][:-1].clone()}),
            rf"tensor \({VALUE}\).*got \(47, 72\), expected \(48, 72\)",
        ),
        (lambda t: t.update({VALUE: t[VALUE].T.contiguous()}), rf"tensor \({VALUE}\).*got \(72, 48\)"),
        (lambda t: t.update({VALUE: t[VALUE].to(torch.int8)}), rf"{VALUE}\): weights must be floating.*got I8"),
        (lambda t: t.update({VALUE: t[VALUE].double()}), rf"{VALUE}\): weights must be floating.*got F64"),
        (lambda t: t[VALUE][3, 5].fill_(float("nan")), rf"{VALUE}\): every value must be finite"),
        (lambda t: t[VALUE][-1, -1].fill_(-float("inf")), rf"{VALUE}\): every value must be finite"),
        (lambda t: t[NORM][0].fill_(float("inf")), rf"{NORM}\): every value must be finite"),
    ],
)
def test_damaged_tensors_are_named(edit, said, qwen2):
    rewrite(qwen2, edit)
    with pytest.raises(ModelError, match=said):
        read(qwen2)


@given(st.integers(0, 48 * 72 - 1), st.sampled_from([float("nan"), float("inf"), -float("inf")]))
@settings(max_examples=40)
def test_one_bad_value_anywhere_is_found(built, position, value):
    with tempfile.TemporaryDirectory() as folder:
        damaged = Path(folder) / "model"
        shutil.copytree(built["qwen2"], damaged)
        rewrite(damaged, lambda t: t[VALUE].view(-1)[position].fill_(value))
        for dtype in (FLOAT32, BFLOAT16, torch.float16):
            with pytest.raises(ModelError, match=rf"{VALUE}\): every value must be finite"):
                read(damaged, dtype)


def test_a_cast_that_overflows_is_not_finite(qwen2):
    rewrite(qwen2, lambda t: t[VALUE][0].fill_(1e6))
    assert read(qwen2)["layers.0.qkv"].isfinite().all()
    with pytest.raises(ModelError, match=rf"{VALUE}\): every value must be finite"):
        read(qwen2, torch.float16)


@given(st.data())
@settings(max_examples=40)
def test_a_truncated_file_is_refused(built, data):
    whole = (built["llama"] / WEIGHTS).read_bytes()
    length = data.draw(st.integers(0, 4000) | st.integers(0, len(whole) - 1))
    with tempfile.TemporaryDirectory() as folder:
        damaged = Path(folder) / "model"
        shutil.copytree(built["llama"], damaged)
        (damaged / WEIGHTS).write_bytes(whole[:length])
        with pytest.raises(ModelError, match="must be whole safetensors"):
            read(damaged)


@given(st.binary(max_size=300))
@settings(max_examples=40)
def test_garbage_is_refused(built, garbage):
    with tempfile.TemporaryDirectory() as folder:
        damaged = Path(folder) / "model"
        shutil.copytree(built["llama"], damaged)
        (damaged / WEIGHTS).write_bytes(garbage)
        with pytest.raises(ModelError):
            read(damaged)


def test_no_weights_say_what_lies_there(qwen2, tmp_path):
    arch = small("qwen2")
    (qwen2 / WEIGHTS).rename(qwen2 / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"got pytorch_model.bin, expected model.safetensors or"):
        read_parameters(qwen2, arch, FLOAT32)
    with pytest.raises(ModelError, match="got no such directory"):
        read_parameters(tmp_path / "nowhere", arch, FLOAT32)


def test_damaged_shards(qwen2):
    weight_map = shard(qwen2)
    index, first = qwen2 / INDEX, weight_map[NORM]
    good = index.read_text()

    def refused(said):
        with pytest.raises(ModelError, match=said):
            read(qwen2)

    (qwen2 / first).rename(qwen2 / "aside")
    refused(rf"{first}\): the file must be whole safetensors")
    (qwen2 / "aside").rename(qwen2 / first)
    other = next(file for file in weight_map.values() if file != first)
    index.write_text(json.dumps({"weight_map": {**weight_map, NORM: other}}))
    refused("the index promises it|not in the index")
    index.write_text(json.dumps({"weight_map": {k: v for k, v in weight_map.items() if k != NORM}}))
    refused(rf"{NORM}\): {first} holds it - got not in the index")
    index.write_text(json.dumps({"weight_map": {**weight_map, NORM: "../" + first}}))
    refused("the index must name a file beside it")
    index.write_text(json.dumps({"weight_map": {**weight_map, NORM: 3}}))
    refused("the index must name a file beside it")
    for broken in ("{}", '{"weight_map": []}', '{"weight_map": {}}', "[", "[]"):
        index.write_text(broken)
        refused("weight_map|must be a JSON object")
    index.write_text(good)
    read(qwen2)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_written_models_load_everywhere(family, dtype, built, tmp_path):
    model = load(str(built[family]))
    params = {name: (tensor * 0.5).to(dtype) for name, tensor in read(model.path).items()}
    target = tmp_path / "weights" / "step_10"
    write_model(target, params, model.arch, model)
    again = load(str(target))
    assert again.arch == model.arch
    assert again.tokenizer.encode("1 + 2") == model.tokenizer.encode("1 + 2")
    assert again.tokenizer.eos_ids == model.tokenizer.eos_ids
    assert same(read_parameters(target, again.arch, dtype), params)
    theirs = AutoModelForCausalLM.from_pretrained(target)
    assert theirs.dtype == dtype
    assert torch.equal(theirs.state_dict()["model.norm.weight"], params["norm"])
    assert theirs.generation_config.eos_token_id == 1
    assert not list(target.parent.glob(".*"))


def test_writing_replaces_and_keeps_the_rest_of_the_config(built, qwen2):
    model = load(str(qwen2))
    config = json.loads((qwen2 / "config.json").read_text())
    config |= {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}, "torch_dtype": "float16", "mine": 1}
    (qwen2 / "config.json").write_text(json.dumps(config))
    (qwen2 / "stale.txt").write_text("")
    params = {name: tensor + 1 for name, tensor in read(qwen2).items()}
    write_model(qwen2, params, model.arch, qwen2)  # source and target may be the same
    assert same(read(qwen2), params)
    assert not (qwen2 / "stale.txt").exists()
    written = json.loads((qwen2 / "config.json").read_text())
    assert (written["mine"], written["dtype"], written["rope_theta"]) == (1, "float32", 5000.0)
    assert "torch_dtype" not in written


def test_parameters_that_need_grad_are_written(built, tmp_path):
    model = load(str(built["llama"]))
    params = {name: tensor.requires_grad_() for name, tensor in read(model.path).items()}
    write_model(tmp_path / "out", params, model.arch, model)
    assert digest(read(tmp_path / "out")) == digest(params)


def test_a_missing_tokenizer_is_named_before_anything_is_written(qwen2, tmp_path):
    params, arch = read(qwen2), small("qwen2")
    (qwen2 / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer.json\): the source must hold the tokenizer"):
        write_model(tmp_path / "out", params, arch, qwen2)
    assert not (tmp_path / "out").exists()


@contextmanager
def file_size_limit(limit):
    """The disk is full after so many bytes of a file: the kernel answers EFBIG in the same place as ENOSPC."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit", [0, 100, 60_000])
def test_a_full_disk_leaves_the_old_model(limit, qwen2):
    model = load(str(qwen2))
    params = read(qwen2)
    before = digest(params)
    with file_size_limit(limit), pytest.raises(StorageError, match="written whole"):
        write_model(qwen2, {name: tensor + 1 for name, tensor in params.items()}, model.arch, model)
    assert digest(read(qwen2)) == before
    assert [path.name for path in qwen2.parent.iterdir()] == ["qwen2"]


def test_digest_is_what_it_says():
    params = {"b": torch.arange(6, dtype=BFLOAT16).reshape(2, 3), "a": torch.ones(2)}
    inner = {name: blake3(tensor.view(torch.uint8).numpy().tobytes()).hexdigest() for name, tensor in params.items()}
    text = f"a float32 (2,) {inner['a']}\nb bfloat16 (2, 3) {inner['b']}\n"
    assert digest(params) == blake3(text.encode()).hexdigest()
    assert digest(dict(reversed(params.items()))) == digest(params)


@given(
    st.sampled_from(["norm", "layers.0.qkv", "layers.1.down", "embedding"]), st.integers(0, 10**6), st.integers(0, 15)
)
def test_digest_sees_every_bit(name, position, bit):
    params = {n: t.to(BFLOAT16) for n, t in random_parameters(small("llama"), 0).items()}
    before = digest(params)
    words = params[name].view(torch.int16).view(-1)
    words[position % len(words)] ^= 1 << bit if bit < 15 else -(1 << 15)
    assert digest(params) != before
    words[position % len(words)] ^= 1 << bit if bit < 15 else -(1 << 15)
    assert digest(params) == before


def test_digest_sees_name_dtype_and_shape():
    tensor = torch.zeros(2, 6)
    digests = {
        digest({"a": tensor}), digest({"b": tensor}), digest({"a": tensor.view(3, 4)}), digest({"a": tensor.view(12)}),
        digest({"a": tensor.to(BFLOAT16)}), digest({"a": torch.zeros(2, 12, dtype=BFLOAT16)}), digest({}),
    }  # fmt: skip
    assert len(digests) == 7


def test_digest_is_of_values_not_of_layout():
    tensor = torch.arange(12.0).reshape(3, 4)
    assert digest({"a": tensor.T.contiguous().T}) == digest({"a": tensor})
    assert digest({"a": torch.cat([torch.zeros(1, 4), tensor])[1:]}) == digest({"a": tensor})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_numbers_that_are_not_finite_are_found_wherever_they_are(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    plain = torch.full((3, 70), largest, dtype=dtype)
    assert all_finite(plain)
    for bad in (math.nan, math.inf, -math.inf):
        for place in ((0, 0), (1, 33), (2, 69)):
            spoiled = plain.clone()
            spoiled[place] = bad
            assert not all_finite(spoiled)
    both = torch.zeros(2, 2, dtype=dtype)
    both[0, 0], both[1, 1] = math.inf, -math.inf
    assert not all_finite(both)
