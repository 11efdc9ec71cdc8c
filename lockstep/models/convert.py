"""A GGUF file of llama.cpp as an HF directory.

In: the GGUF. Out: config, weights, tokenizer and chat template that Lockstep and transformers load alike.

Weights are dequantised in fp32 and rounded to bfloat16, the dtype in which models of this kind are published. llama.cpp
interleaves the rotary halves of the query and key projections; that permutation is undone.

Letters: H heads, D head dim, E hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from torch import Tensor

from lockstep.errors import ModelError, message
from lockstep.models.architecture import Architecture
from lockstep.models.checkpoint import from_hf, hf_shapes, write_network
from lockstep.models.directory import write_json
from lockstep.models.download import Progress
from lockstep.models.gguf import GGUF, Value

_TOP = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm", "lm_head.weight": "output"}
_LAYER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
_SIZES = {
    "num_hidden_layers": "block_count", "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length", "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count", "num_key_value_heads": "attention.head_count_kv",
}  # fmt: skip
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # llama.cpp's kinds of token


@dataclass(frozen=True, slots=True)
class Converted:
    """All of a model, in memory: what `write` puts into a directory."""

    arch: Architecture
    params: dict[str, Tensor]
    tokenizer: tokenizers.Tokenizer
    tokenizer_config: dict[str, Any]
    token_ids: dict[str, int]

    def write(self, directory: Path) -> None:
        """Write the HF files into an existing directory."""
        write_network(directory, self.params, self.arch, self.token_ids)
        write_json(directory / "generation_config.json", self.token_ids)
        write_json(directory / "tokenizer_config.json", self.tokenizer_config)
        (directory / "tokenizer.json").write_text(self.tokenizer.to_str(pretty=True), encoding="utf-8")
        if template := self.tokenizer_config.get("chat_template"):
            (directory / "chat_template.jinja").write_text(template, encoding="utf-8")


def read_gguf(path: Path, progress: Progress) -> Converted:
    """Read and dequantise the model in `path`. Raises `ModelError` for damage and for what is not supported."""
    with GGUF.open(path) as file:
        arch = _architecture(file)
        tokenizer, vocabulary = _tokenizer(file, arch)
        ids = _token_ids(file, len(vocabulary))
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": arch.max_context,
            "clean_up_tokenization_spaces": False,
            **{name.removesuffix("_id"): vocabulary[number] for name, number in ids.items()},
        }
        if "tokenizer.chat_template" in file.metadata:
            settings["chat_template"] = _entry(file, "tokenizer.chat_template", str)
        tensors = _tensors(file, arch, progress)
    ids = {name: number for name, number in ids.items() if name != "unk_token_id"}
    return Converted(arch, from_hf(tensors, arch), tokenizer, settings, ids)


def undo_permutation(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """[H * D, E] from llama.cpp's row order within a head (0, D/2, 1, D/2 + 1, ...) to that of HF (0, 1, 2, ...)."""
    pairs = weight.reshape(num_heads, -1, 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _architecture(file: GGUF) -> Architecture:
    name = _entry(file, "general.architecture", str)
    if name != "llama":
        raise _unsupported(file, "general.architecture", name, "llama")
    for key in ("rope.scaling.type", "expert_count"):
        if file.metadata.get(f"llama.{key}") not in (None, 0, "none"):
            raise _unsupported(file, f"llama.{key}", file.metadata[f"llama.{key}"], "none")
    config = {ours: _entry(file, f"llama.{theirs}", int) for ours, theirs in _SIZES.items()}
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise _unsupported(file, "token_embd.weight", embedding and embedding.shape, "the embedding matrix")
    arch = Architecture.from_hf(
        {
            **config,
            "model_type": name,
            "vocab_size": embedding.shape[0],
            "rope_theta": _decimal(file.metadata.get("llama.rope.freq_base", 10000.0)),
            "rms_norm_eps": _decimal(_entry(file, "llama.attention.layer_norm_rms_epsilon", float)),
            "tie_word_embeddings": "output.weight" not in file.tensors,
        }
    )
    rotated = file.metadata.get("llama.rope.dimension_count", arch.head_dim)
    if rotated != arch.head_dim:
        raise _unsupported(file, "llama.rope.dimension_count", rotated, f"head_dim ({arch.head_dim})")
    return arch


def _tensors(file: GGUF, arch: Architecture, progress: Progress) -> dict[str, Tensor]:
    names = {hf_name: _gguf_name(hf_name) for hf_name in hf_shapes(arch)}
    extra = sorted(set(file.tensors) - set(names.values()))
    if extra:
        raise _unsupported(file, "tensors", ", ".join(extra[:4]), f"the {len(names)} of the architecture")
    heads = {"attn_q.weight": arch.num_heads, "attn_k.weight": arch.num_kv_heads}
    tensors = {}
    for done, (hf_name, name) in enumerate(names.items()):
        progress("convert", done, len(names))
        shape = hf_shapes(arch)[hf_name]
        if name in file.tensors and file.tensors[name].shape != shape:
            raise _unsupported(file, name, file.tensors[name].shape, f"{shape}")
        weight = file.read(name)
        if not np.isfinite(weight).all():
            raise _unsupported(file, name, "NaN or infinity", "finite values")
        kind = name.partition(".")[2].partition(".")[2]  # blk.0.attn_q.weight -> attn_q.weight
        if kind in heads:
            weight = undo_permutation(weight, heads[kind])
        tensors[hf_name] = torch.from_numpy(weight).to(torch.bfloat16)
    progress("convert", len(names), len(names))
    return tensors


def _gguf_name(hf_name: str) -> str:
    if hf_name in _TOP:
        return f"{_TOP[hf_name]}.weight"
    _, _, index, rest = hf_name.split(".", 3)
    return f"blk.{index}.{_LAYER[rest.removesuffix('.weight')]}.weight"


def _tokenizer(file: GGUF, arch: Architecture) -> tuple[tokenizers.Tokenizer, list[str]]:
    """GPT-2 style byte-level BPE with SmolLM's split: every digit alone, then GPT-2's pattern."""
    for key, expected in (("tokenizer.ggml.model", "gpt2"), ("tokenizer.ggml.pre", "smollm")):
        if file.metadata.get(key) != expected:
            raise _unsupported(file, key, file.metadata.get(key), expected)
    vocabulary = _list(file, "tokenizer.ggml.tokens", str)
    kinds = _list(file, "tokenizer.ggml.token_type", int)
    merges = [tuple(merge.split(" ")) for merge in _list(file, "tokenizer.ggml.merges", str)]
    ids = {token: i for i, token in enumerate(vocabulary)}
    if not len(ids) == len(vocabulary) == len(kinds) == arch.vocab_size:
        got = f"{len(vocabulary)} tokens ({len(ids)} distinct), {len(kinds)} kinds"
        raise _unsupported(file, "tokenizer.ggml.tokens", got, f"{arch.vocab_size} distinct ones")
    for merge in merges:
        if len(merge) != 2 or not {*merge, "".join(merge)} <= ids.keys():
            raise _unsupported(file, "tokenizer.ggml.merges", " ".join(merge), "two tokens that join to a third")
    core = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=merges))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    core.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(vocabulary, kinds, strict=True) if kind in (_UNKNOWN, _CONTROL)]
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    added = [token for token, kind in zip(vocabulary, kinds, strict=True) if kind == _USER_DEFINED]
    core.add_tokens([AddedToken(token, normalized=False) for token in added])
    return core, vocabulary


def _token_ids(file: GGUF, vocab_size: int) -> dict[str, int]:
    """bos, eos, pad and unk ids under their HF names."""
    names = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id", "unknown": "unk_token_id"}
    ids = {}
    for theirs, ours in names.items():
        key = f"tokenizer.ggml.{theirs}_token_id"
        if key in file.metadata:
            ids[ours] = _entry(file, key, int)
            if not 0 <= ids[ours] < vocab_size:
                raise _unsupported(file, key, ids[ours], f"an id below {vocab_size}")
    return ids


def _entry(file: GGUF, key: str, kind: type) -> Any:
    value = file.metadata.get(key)
    if type(value) is not kind:
        raise _unsupported(
            file, key, "nothing" if value is None else repr(value)[:60], f"a value of type {kind.__name__}"
        )
    return value


def _list(file: GGUF, key: str, kind: type) -> list[Any]:
    values = _entry(file, key, list)
    if any(type(value) is not kind for value in values):
        raise _unsupported(file, key, "a mixed list", f"a list of {kind.__name__}")
    return values


def _decimal(value: Value) -> Any:
    """The decimal somebody wrote that a float32 stands for: 9.999999747e-06 -> 1e-05."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _unsupported(file: GGUF, subject: str, got: object, expected: str) -> ModelError:
    do = "Use another file, or an HF directory of the model"
    return ModelError(message(f"GGUF ({file.path.name}: {subject})", "not usable", got=got, expected=expected, do=do))
