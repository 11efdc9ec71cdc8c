"""`Architecture`: HF configs in both dialects, in and out, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, LlamaConfig, Qwen2Config, Qwen3Config

from lockstep.errors import ModelError
from lockstep.models.architecture import FAMILIES, Architecture, Llama3Scaling
from lockstep.models.tiny import small

SMOLLM2 = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "rope_theta": 100000,
    "rope_scaling": None,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def changed(**changes):
    return {**SMOLLM2, **changes}


def without(*names):
    return {key: value for key, value in SMOLLM2.items() if key not in names}


def test_smollm2():
    arch = Architecture.from_hf(SMOLLM2)
    assert arch == Architecture(
        family="llama", vocab_size=49152, hidden_size=576, intermediate_size=1536, num_layers=30, num_heads=9,
        num_kv_heads=3, head_dim=64, rope_theta=100000.0, norm_eps=1e-5, max_context=8192, tied=True,
    )  # fmt: skip
    shapes = arch.parameter_shapes()
    assert sum(math.prod(shape) for shape in shapes.values()) == 134_515_008


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("llama", LlamaConfig(rope_parameters={"rope_type": "default", "rope_theta": 3e5}, head_dim=96)),
        ("qwen2", Qwen2Config(rope_parameters={"rope_type": "default", "rope_theta": 3e5})),
        ("qwen3", Qwen3Config(rope_parameters={"rope_type": "default", "rope_theta": 3e5}, head_dim=64)),
    ],
)
def test_reads_what_transformers_writes(family, config, tmp_path):
    config.save_pretrained(tmp_path)
    arch = Architecture.from_hf(json.loads((tmp_path / "config.json").read_text()))
    assert arch.family == family
    assert arch.rope_theta == 3e5
    assert arch.num_layers == config.num_hidden_layers
    assert arch.num_kv_heads == config.num_key_value_heads
    assert arch.head_dim == getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    assert arch.norm_eps == config.rms_norm_eps
    assert arch.tied == config.tie_word_embeddings


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scaled", [False, True])
def test_transformers_reads_what_we_write(family, scaled, tmp_path):
    scaling = Llama3Scaling(8.0, 1.0, 4.0, 64) if scaled else None
    arch = small(family, rope_theta=7e5, norm_eps=3e-6, tied=True, rope_scaling=scaling)
    (tmp_path / "config.json").write_text(json.dumps(arch.to_hf()))
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.model_type == family
    assert config.rope_parameters["rope_theta"] == 7e5
    assert config.rope_parameters["rope_type"] == ("llama3" if scaled else "default")
    assert config.rms_norm_eps == 3e-6
    assert config.tie_word_embeddings is True
    assert config.num_key_value_heads == arch.num_kv_heads
    assert Architecture.from_hf(config.to_dict()) == arch


architectures = st.builds(
    small,
    st.sampled_from(FAMILIES),
    vocab_size=st.integers(1, 10**6),
    num_layers=st.integers(1, 5),
    num_heads=st.sampled_from([4, 8, 12]),
    num_kv_heads=st.sampled_from([1, 2, 4]),
    head_dim=st.sampled_from([2, 16, 128]),
    rope_theta=st.floats(1.0, 1e7),
    norm_eps=st.floats(1e-9, 1e-2),
    tied=st.booleans(),
    rope_scaling=st.none() | st.builds(Llama3Scaling, st.floats(1, 32), st.just(1.0), st.floats(2, 8), st.just(8192)),
)


@given(architectures)
def test_round_trip(arch):
    assert Architecture.from_hf(arch.to_hf()) == arch


@given(architectures)
def test_names_follow_the_family(arch):
    shapes = arch.parameter_shapes()
    assert next(iter(shapes)) == "embedding"
    assert ("head" in shapes) is not arch.tied
    assert ("layers.0.qkv_bias" in shapes) is (arch.family == "qwen2")
    assert ("layers.0.q_norm" in shapes) is ("layers.0.k_norm" in shapes) is (arch.family == "qwen3")
    assert shapes["layers.0.qkv"] == ((arch.num_heads + 2 * arch.num_kv_heads) * arch.head_dim, arch.hidden_size)
    assert shapes["layers.0.gate_up"][0] == 2 * shapes["layers.0.down"][1]


def test_both_dialects_of_rope():
    theta = Architecture.from_hf(SMOLLM2).rope_theta
    new = {**without("rope_theta", "rope_scaling"), "rope_parameters": {"rope_type": "default", "rope_theta": theta}}
    assert Architecture.from_hf(new) == Architecture.from_hf(SMOLLM2)
    both = changed(rope_theta=1.0, rope_parameters={"rope_type": "default", "rope_theta": theta})
    assert Architecture.from_hf(both).rope_theta == theta  # as transformers 5 has it
    old = Architecture.from_hf(changed(rope_scaling=LLAMA3))
    new = {**without("rope_theta", "rope_scaling"), "rope_parameters": {**LLAMA3, "rope_theta": theta}}
    assert Architecture.from_hf(new) == old
    assert old.rope_scaling == Llama3Scaling(8.0, 1.0, 4.0, 8192)


def test_defaults_of_absent_and_null_keys():
    arch = Architecture.from_hf(without("rope_theta", "num_key_value_heads", "tie_word_embeddings"))
    assert (arch.rope_theta, arch.num_kv_heads, arch.tied) == (10000.0, 9, False)
    assert Architecture.from_hf(changed(head_dim=None, num_key_value_heads=None)).num_kv_heads == 9


def test_an_unknown_family_lists_the_known_ones():
    with pytest.raises(ModelError, match="got mamba, expected one of llama, qwen2, qwen3"):
        Architecture.from_hf(changed(model_type="mamba"))


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({}, "model_type"),
        (without("hidden_size"), "hidden_size"),
        (without("rms_norm_eps"), "rms_norm_eps"),
        (without("max_position_embeddings"), "max_position_embeddings"),
        (changed(hidden_size="576"), "hidden_size"),
        (changed(num_hidden_layers=True), "num_hidden_layers"),
        (changed(num_hidden_layers=0), "num_layers"),
        (changed(num_hidden_layers=10**9), "num_layers"),
        (changed(num_key_value_heads=2), "num_kv_heads"),
        (changed(num_attention_heads=0), "head_dim"),
        (changed(hidden_size=577), "head_dim"),
        (changed(head_dim=63), "head_dim"),
        (changed(head_dim="64"), "head_dim"),
        (changed(rms_norm_eps=-1e-5), "norm_eps"),
        (changed(rms_norm_eps="1e-5"), "rms_norm_eps"),
        (changed(rope_theta=float("nan")), "rope_theta"),
        (changed(rope_theta=10**400), "rope_theta"),
        (changed(tie_word_embeddings="yes"), "tie_word_embeddings"),
        (changed(hidden_act="gelu"), "hidden_act"),
        (changed(attention_bias=True), "attention_bias"),
        (changed(mlp_bias=True), "mlp_bias"),
        (changed(quantization_config={"bits": 4}), "quantization_config"),
        (changed(model_type="qwen2", use_sliding_window=True), "use_sliding_window"),
        (changed(model_type="qwen2", layer_types=["full_attention", "sliding_attention"]), "layer_types"),
        (changed(partial_rotary_factor=0.5), "partial_rotary_factor"),
        (changed(rope_parameters={"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        (changed(rope_scaling={"type": "linear", "factor": 2.0}), "rope_type"),
        (changed(rope_scaling={"rope_type": "yarn", "factor": 2.0}), "rope_type"),
        (changed(rope_scaling="linear"), "rope_scaling"),
        (changed(rope_scaling={**LLAMA3, "factor": None}), "factor"),
        (changed(rope_scaling={**LLAMA3, "high_freq_factor": 1.0}), "rope_scaling"),
        (changed(rope_scaling={**LLAMA3, "original_max_position_embeddings": 0}), "rope_scaling"),
        ({**changed(model_type="qwen3")}, "head_dim"),
    ],
)
def test_refused(config, named):
    with pytest.raises(ModelError, match=rf"architecture \({named}\)"):
        Architecture.from_hf(config)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from([*SMOLLM2, "head_dim", "rope_parameters", "layer_types"]), json_values))
def test_any_config_is_read_or_refused(damage):
    try:
        arch = Architecture.from_hf({**SMOLLM2, **damage})
    except ModelError:
        return
    assert Architecture.from_hf(arch.to_hf()) == arch


def test_sizes_are_checked_however_it_is_made():
    with pytest.raises(ModelError, match="num_kv_heads"):
        dataclasses.replace(small("llama"), num_kv_heads=4)
