"""A Llama-like HF directory as a GGUF file in bf16, with token ids only: no tokenizer is written, as none is asked for.

In: a directory with model.safetensors in bf16, tied embeddings. Out: a GGUF file, whole or not at all. Norms are
widened to fp32, as llama.cpp's own converter does; Q and K rows are put in the order of its rotary embedding.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}


def convert(source: Path, target: Path) -> None:
    """Write `target` unless it is there already and younger than the weights."""
    weights = source / "model.safetensors"
    if target.exists() and target.stat().st_mtime > weights.stat().st_mtime:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "llama" and config["tie_word_embeddings"], "a tied Llama"
    partial = target.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "llama")
    _describe(writer, config)
    for name, raw in tensors(weights):
        _add(writer, name, raw, config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(target)


def tensors(weights: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Name and bits (uint16, in the tensor's shape) of each bf16 tensor of a safetensors file."""
    data = np.memmap(weights, np.uint8, "r")
    size = int(data[:8].view(np.uint64)[0])
    header = json.loads(data[8 : 8 + size].tobytes())
    header.pop("__metadata__", None)
    for name, about in header.items():
        assert about["dtype"] == "BF16", f"{name} is {about['dtype']}"
        begin, end = (8 + size + offset for offset in about["data_offsets"])
        yield name, np.frombuffer(data[begin:end].tobytes(), np.uint16).reshape(about["shape"])


def rotary_order(raw: np.ndarray, heads: int) -> np.ndarray:
    """Rows of Q or K from HF's order (both halves of a head) to llama.cpp's (pairs)."""
    half = raw.shape[0] // heads // 2
    return raw.reshape(heads, 2, half, raw.shape[1]).swapaxes(1, 2).reshape(raw.shape)


def _describe(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_tokenizer_model("no_vocab")


def _add(writer: gguf.GGUFWriter, name: str, raw: np.ndarray, config: dict[str, Any]) -> None:
    stem = name.removesuffix(".weight")
    if stem in OUTER:
        target = OUTER[stem]
    else:
        _, _, number, part = stem.split(".", 3)
        target = f"blk.{number}.{LAYER[part]}"
        if part == "self_attn.q_proj":
            raw = rotary_order(raw, config["num_attention_heads"])
        if part == "self_attn.k_proj":
            raw = rotary_order(raw, config["num_key_value_heads"])
    if raw.ndim == 1:
        writer.add_tensor(f"{target}.weight", (raw.astype(np.uint32) << 16).view(np.float32))
    else:
        bits = np.ascontiguousarray(raw).view(np.uint8)
        writer.add_tensor(f"{target}.weight", bits, raw_dtype=gguf.GGMLQuantizationType.BF16)
