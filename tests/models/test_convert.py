"""GGUF to an HF directory: weights, tokenizer and config come out as they went in."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from transformers import AutoModelForCausalLM, AutoTokenizer

from lockstep.errors import ModelError
from lockstep.models import load
from lockstep.models.checkpoint import read_parameters, to_hf
from lockstep.models.convert import read_gguf, undo_permutation


def silent(stage, done, total):
    """No progress."""


def patched(source, target, old, new):
    """A copy in which bytes of the header were replaced by as many others."""
    content = source.read_bytes()
    assert len(old) == len(new)
    assert old in content
    target.write_bytes(content.replace(old, new, 1))
    return target


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 4), st.data())
def test_permutation_is_undone(heads, half, columns, data):
    """llama.cpp's converter: reshape(n_head, 2, rows // n_head // 2, columns).swapaxes(1, 2)."""
    weight = data.draw(hnp.arrays(np.float32, (heads * half * 2, columns), elements=st.floats(-1, 1, width=32)))
    stored = weight.reshape(heads, 2, half, columns).swapaxes(1, 2).reshape(weight.shape)
    assert np.array_equal(undo_permutation(stored, heads), weight)


def test_permutation_by_hand():
    stored = np.array([[0], [2], [1], [3], [10], [12], [11], [13]])  # two heads; rows i and i + D/2 side by side
    assert undo_permutation(stored, 2)[:, 0].tolist() == [0, 1, 2, 3, 10, 11, 12, 13]


@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_those_it_was_made_from(tied, small_gguf, untied_gguf, tmp_path):
    source = small_gguf if tied else untied_gguf
    read_gguf(source.path, silent).write(tmp_path)
    model = load(str(tmp_path))
    assert model.arch.tied is tied
    tensors = to_hf(read_parameters(tmp_path, model.arch, torch.bfloat16), model.arch)
    assert set(tensors) == set(source.weights)
    for name, expected in source.weights.items():
        assert torch.equal(tensors[name], torch.from_numpy(expected).to(torch.bfloat16)), name


def test_config(small_gguf, converted):
    config = json.loads((converted / "config.json").read_text())
    expected = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "rope_theta": 100000.0, "rms_norm_eps": 1e-05, "max_position_embeddings": 512, "tie_word_embeddings": True,
        "dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
        "vocab_size": small_gguf.tokenizer.get_vocab_size(),
    }  # fmt: skip
    assert {key: config[key] for key in expected} == expected
    generation = json.loads((converted / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


def test_transformers_loads_it(converted):
    theirs = AutoModelForCausalLM.from_pretrained(converted)
    assert theirs.dtype == torch.bfloat16
    assert theirs.generation_config.eos_token_id == 2
    assert theirs.lm_head.weight is theirs.model.embed_tokens.weight
    tokenizer = AutoTokenizer.from_pretrained(converted)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.model_max_length == 512


def test_tokenizer_is_the_one_it_was_made_from(small_gguf, converted):
    model = load(str(converted))
    assert model.tokenizer.vocab_size == small_gguf.tokenizer.get_vocab_size()
    assert model.tokenizer.eos_ids == (2,)
    for text in (
        "the quick 2024 dogs'll",
        "12 x121",
        "naïve 日本語 \U0001f600",
        "<|im_start|>user\n<|im_end|>",
        " \n\t x ",
        "zq",
    ):
        assert model.tokenizer.encode(text) == small_gguf.tokenizer.encode(text).ids
    assert model.tokenizer.decode([0, 1, 2]) == ""  # control tokens are special
    assert model.tokenizer.decode([0, 1, 2], skip_special=False) == "".join(small_gguf.special)


@given(st.text(max_size=30))
def test_tokenizer_on_any_text(small_gguf, converted, text):
    assert load(str(converted)).tokenizer.encode(text) == small_gguf.tokenizer.encode(text).ids


def test_chat_template_is_stored_twice(small_gguf, converted):
    assert (converted / "chat_template.jinja").read_text() == small_gguf.template
    assert json.loads((converted / "tokenizer_config.json").read_text())["chat_template"] == small_gguf.template
    rendered = load(str(converted)).tokenizer.render([{"role": "user", "content": "hi"}])
    assert rendered == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_progress_counts_tensors(small_gguf):
    seen = []
    read_gguf(small_gguf.path, lambda stage, done, total: seen.append((stage, done, total)))
    assert seen == [("convert", i, 20) for i in range(21)]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0lemma", "general.architecture.*got lemma, expected llama"),
        (b"gpt2", b"bert", "tokenizer.ggml.model.*got bert, expected gpt2"),
        (b"smollm", b"qwen99", "tokenizer.ggml.pre.*got qwen99, expected smollm"),
        (b"llama.block_count", b"llama.block_bount", r"llama.block_count\).*got nothing, expected a value of type int"),
        (b"llama.rope.freq_base", b"llama.expert_count__"[:20], None),
        (b"blk.1.ffn_up.weight", b"blk.1.ffn_xp.weight", r"tensors\).*got blk.1.ffn_xp.weight, expected the 20"),
        (b"token_embd.weight", b"token_xmbd.weight", "token_embd.weight"),
        (b"blk.0.attn_q.weight", b"blk.0.attn_Q.weight", "blk.0.attn_Q.weight"),
        (b"tokenizer.ggml.merges", b"tokenizer.ggml.mergez", "tokenizer.ggml.merges.*a value of type list"),
        (b"tokenizer.ggml.token_type", b"tokenizer.ggml.token_typo", "tokenizer.ggml.token_type"),
    ],
)
def test_what_is_not_supported_is_named(old, new, said, small_gguf, tmp_path):
    file = patched(small_gguf.path, tmp_path / "x.gguf", old, new)
    if said is None:  # an unknown key is not our business; the base falls back to its default
        assert read_gguf(file, silent).arch.rope_theta == 10000.0
        return
    with pytest.raises(ModelError, match=rf"GGUF \(x.gguf: .*{said}"):
        read_gguf(file, silent)


def number(key, value, kind=4):
    return key.encode() + kind.to_bytes(4, "little") + value.to_bytes(4, "little")


@pytest.mark.parametrize(
    ("key", "value", "wrong", "said"),
    [
        ("llama.block_count", 2, 1, "tensors"),
        ("llama.block_count", 2, 3, "tensor blk.2.attn_norm.weight must be there"),
        ("llama.block_count", 2, 2**31, "num_layers"),
        ("llama.embedding_length", 64, 128, r"rope.dimension_count\).*expected head_dim \(32\)"),
        ("llama.feed_forward_length", 96, 64, r"blk.0.ffn_gate.weight\).*got \(96, 64\), expected \(64, 64\)"),
        ("llama.attention.head_count", 4, 2, "rope.dimension_count|attn_q"),
        ("llama.attention.head_count", 4, 0, "head_dim"),
        ("llama.attention.head_count_kv", 2, 4, "attn_k"),
        ("llama.attention.head_count_kv", 2, 3, "num_kv_heads"),
        ("llama.rope.dimension_count", 16, 8, r"rope.dimension_count\).*got 8, expected head_dim \(16\)"),
        ("tokenizer.ggml.eos_token_id", 2, 70_000, "eos_token_id.*got 70000, expected an id below"),
    ],
)
def test_sizes_that_do_not_fit(key, value, wrong, said, small_gguf, tmp_path):
    file = patched(small_gguf.path, tmp_path / "x.gguf", number(key, value), number(key, wrong))
    with pytest.raises(ModelError, match=said):
        read_gguf(file, silent)


def test_tokens_and_merges_must_fit(small_gguf, tmp_path):
    for old, new, said in (
        (b"<|im_end|>", b"<|im_star|", None),
        (b"<|im_end|>\x01\0\0\0\0\0\0\0!", b"<|im_end|>\x01\0\0\0\0\0\0\0$", r"distinct\)"),
        ("\u0120 t".encode(), "\u0120 \x01".encode(), "tokens that join to a third"),
        ("\u0120 t".encode(), "\u0120xt".encode(), "tokens that join to a third"),
    ):
        file = patched(small_gguf.path, tmp_path / "x.gguf", old, new)
        if said is None:
            read_gguf(file, silent)
            continue
        with pytest.raises(ModelError, match=said):
            read_gguf(file, silent)


def test_infinite_weights_are_refused(small_gguf, tmp_path):
    content = bytearray(small_gguf.path.read_bytes())
    content[-4:] = np.float32(np.inf).tobytes()  # the last of output_norm
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=r"output_norm.weight\): not usable - got NaN or infinity"):
        read_gguf(tmp_path / "x.gguf", silent)


@given(st.data())
@settings(max_examples=150)
def test_a_damaged_file_is_converted_or_refused(small_gguf, data):
    content = bytearray(small_gguf.path.read_bytes())
    places = st.integers(0, 2000) | st.integers(0, len(content) - 1)
    for position, mask in data.draw(st.lists(st.tuples(places, st.integers(1, 255)), min_size=1, max_size=3)):
        content[position] ^= mask
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x.gguf"
        file.write_bytes(content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))])
        try:
            model = read_gguf(file, silent)
        except ModelError:
            return
        out = Path(folder) / "out"
        out.mkdir()
        model.write(out)
        assert read_parameters(out, model.arch, torch.float32)


def test_two_conversions_are_identical(small_gguf, converted, tmp_path):
    read_gguf(small_gguf.path, silent).write(tmp_path)
    for file in converted.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name
    shutil.rmtree(tmp_path)
