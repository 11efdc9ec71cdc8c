"""A cache of its own for each test session, and a small GGUF model made with the reference library."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import pytest
import tokenizers
from gguf import GGMLQuantizationType as Quant
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from lockstep.models.convert import read_gguf

TEMPLATE = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CORPUS = (
    "the quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "What is 12 + 34? It is 46! Isn't it? We'll see; they've said so, and I'm sure you'd agree.",
    "Grüße aus Köln, こんにちは, 日本語, emoji \U0001f600\U0001f468\u200d\U0001f469, naïve café.",
    "  indented\n\tcode = [1, 2, 3]\n\n\nreturn x['key']",
)
LAYERS, HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM = 2, 64, 96, 4, 2, 16


@dataclass(frozen=True)
class SmallGGUF:
    """The file, the HF weights it was made from (as the file holds them, fp32), and the tokenizer it was made from."""

    path: Path
    weights: dict[str, np.ndarray]
    tokenizer: tokenizers.Tokenizer
    template: str = TEMPLATE
    special: tuple[str, ...] = SPECIAL


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache directory."""
    home = tmp_path / "cache"
    monkeypatch.setenv("LOCKSTEP_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def small_gguf(tmp_path_factory) -> SmallGGUF:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "small.gguf")


@pytest.fixture(scope="session")
def untied_gguf(tmp_path_factory) -> SmallGGUF:
    """The same with an output matrix of its own."""
    return write_gguf(tmp_path_factory.mktemp("gguf") / "untied.gguf", tied=False)


@pytest.fixture(scope="session")
def converted(small_gguf, tmp_path_factory) -> Path:
    """The HF directory made from it. Byte-level BPE, so that a token may be a part of a character."""
    directory = tmp_path_factory.mktemp("converted")
    read_gguf(small_gguf.path, lambda stage, done, total: None).write(directory)
    return directory


def train_tokenizer(vocab_size: int = 420) -> tokenizers.Tokenizer:
    """Byte-level BPE with SmolLM2's split, as its tokenizer.json has it."""
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    tree = json.loads(core.to_str())
    tree["model"]["vocab"]["12"] = len(tree["model"]["vocab"])
    tree["model"]["merges"].append(["1", "2"])  # never applied, as digits are split; without the split it would be
    return tokenizers.Tokenizer.from_str(json.dumps(tree))


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to query and key projections."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(path: Path, *, tied: bool = True) -> SmallGGUF:
    """A two-layer Llama in which every storage type that fits occurs."""
    core = train_tokenizer()
    tokens = sorted(core.get_vocab(), key=core.get_vocab().__getitem__)
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(100000.0)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    writer.add_token_merges(merges_of(core))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)
    weights: dict[str, np.ndarray] = {}

    def put(name: str, hf_name: str, shape: tuple[int, ...], kind: Quant, heads: int = 0) -> None:
        values = (rng.standard_normal(shape) / 4).astype(np.float32)
        raw = gguf.quants.quantize(permuted(values, heads) if heads else values, kind)
        writer.add_tensor(name, raw, raw_dtype=kind)
        # quantisation is by row, so quantising before the permutation gives the same numbers
        weights[hf_name] = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind).reshape(shape)

    queries, keys = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    put("token_embd.weight", "model.embed_tokens.weight", (len(tokens), HIDDEN), Quant.Q8_0)
    for i in range(LAYERS):
        block, layer = f"blk.{i}", f"model.layers.{i}"
        put(f"{block}.attn_norm.weight", f"{layer}.input_layernorm.weight", (HIDDEN,), Quant.F32)
        put(f"{block}.attn_q.weight", f"{layer}.self_attn.q_proj.weight", (queries, HIDDEN), Quant.Q4_1, HEADS)
        put(f"{block}.attn_k.weight", f"{layer}.self_attn.k_proj.weight", (keys, HIDDEN), Quant.F32, KV_HEADS)
        put(f"{block}.attn_v.weight", f"{layer}.self_attn.v_proj.weight", (keys, HIDDEN), Quant.F16)
        put(f"{block}.attn_output.weight", f"{layer}.self_attn.o_proj.weight", (HIDDEN, queries), Quant.BF16)
        put(f"{block}.ffn_norm.weight", f"{layer}.post_attention_layernorm.weight", (HIDDEN,), Quant.F32)
        put(f"{block}.ffn_gate.weight", f"{layer}.mlp.gate_proj.weight", (INNER, HIDDEN), Quant.Q4_0)
        put(f"{block}.ffn_up.weight", f"{layer}.mlp.up_proj.weight", (INNER, HIDDEN), Quant.Q4_1)
        put(f"{block}.ffn_down.weight", f"{layer}.mlp.down_proj.weight", (HIDDEN, INNER), Quant.Q8_0)
    put("output_norm.weight", "model.norm.weight", (HIDDEN,), Quant.F32)
    if not tied:
        put("output.weight", "lm_head.weight", (len(tokens), HIDDEN), Quant.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return SmallGGUF(path, weights, core)


def merges_of(core: tokenizers.Tokenizer) -> list[str]:
    """The merges as GGUF has them."""
    merges = json.loads(core.to_str())["model"]["merges"]
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
