"""What kind of network a checkpoint holds: sizes and family, from and to an HF `config.json`.

In: the parsed `config.json`. Out: a validated `Architecture`, and the shapes of its parameters.

Letters: E hidden, H query heads, K key/value heads, D head dim, I intermediate, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from lockstep.errors import ModelError, message

Family = Literal["llama", "qwen2", "qwen3"]
FAMILIES: tuple[Family, ...] = get_args(Family)
_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_MAX_LAYERS = 1024  # a damaged config must not make us list a billion parameters


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Llama 3.1's stretch of the rotary wavelengths; names as in the HF config."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        low, high = self.low_freq_factor, self.high_freq_factor
        if not (0 < low < high < math.inf and 0 < self.factor < math.inf and self.original_max_position_embeddings > 0):
            raise _wrong("rope_scaling", self, "positive factors with low_freq_factor < high_freq_factor")


@dataclass(frozen=True, slots=True)
class Architecture:
    """Everything that decides the forward pass. Raises `ModelError` if the sizes do not fit together."""

    family: Family
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    norm_eps: float
    max_context: int
    tied: bool
    rope_scaling: Llama3Scaling | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and value <= 0:
                raise _wrong(field.name, value, "a number >= 1")
            if field.type == "float" and not (math.isfinite(value) and value > 0):
                raise _wrong(field.name, value, "a finite number > 0")
        if self.num_layers > _MAX_LAYERS:
            raise _wrong("num_layers", self.num_layers, f"at most {_MAX_LAYERS}")
        if self.num_heads % self.num_kv_heads:
            raise _wrong("num_kv_heads", self.num_kv_heads, f"a divisor of num_heads ({self.num_heads})")
        if self.head_dim % 2:
            raise _wrong("head_dim", self.head_dim, "an even number (rotary pairs)")

    @property
    def qkv_bias(self) -> bool:
        return self.family == "qwen2"

    @property
    def qk_norm(self) -> bool:
        return self.family == "qwen3"

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Architecture:
        """Read an HF config, both the forms of transformers 4 and 5. What we cannot compute exactly is refused."""
        family = config.get("model_type")
        if family not in FAMILIES:
            raise _wrong("model_type", family, f"one of {', '.join(FAMILIES)}")
        _refuse_variants(family, config)
        hidden, heads = _integer(config, "hidden_size"), _integer(config, "num_attention_heads")
        head_dim = config.get("head_dim")
        if head_dim is None:
            if family == "qwen3" or heads < 1 or hidden % heads:
                raise _wrong("head_dim", "nothing", "the key head_dim, or hidden_size a multiple of the heads")
            head_dim = hidden // heads
        theta, scaling = _rope(config)
        return cls(
            family=family,
            vocab_size=_integer(config, "vocab_size"),
            hidden_size=hidden,
            intermediate_size=_integer(config, "intermediate_size"),
            num_layers=_integer(config, "num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=_integer({"num_key_value_heads": heads, **_given(config)}, "num_key_value_heads"),
            head_dim=_integer({"head_dim": head_dim}, "head_dim"),
            rope_theta=theta,
            norm_eps=_number(config, "rms_norm_eps"),
            max_context=_integer(config, "max_position_embeddings"),
            tied=_flag(config, "tie_word_embeddings"),
            rope_scaling=scaling,
        )

    def to_hf(self) -> dict[str, Any]:
        """The keys of an HF `config.json` that this decides; transformers 4 and 5 and vLLM read it."""
        scaling = None
        if self.rope_scaling is not None:
            scaling = {"rope_type": "llama3", **asdict(self.rope_scaling)}
        biases = {
            "llama": {"attention_bias": False, "mlp_bias": False},
            "qwen2": {},
            "qwen3": {"attention_bias": False},
        }
        return {
            "architectures": [_CLASSES[self.family]],
            "model_type": self.family,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": scaling,
            "max_position_embeddings": self.max_context,
            "tie_word_embeddings": self.tied,
            **biases[self.family],
        }

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Internal name -> shape, in the fixed order in which parameters are stored, hashed and compared."""
        hidden, inner = self.hidden_size, self.intermediate_size
        queries, qkv = self.num_heads * self.head_dim, (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        layer: dict[str, tuple[int, ...]] = {"input_norm": (hidden,), "qkv": (qkv, hidden)}
        if self.qkv_bias:
            layer["qkv_bias"] = (qkv,)
        if self.qk_norm:
            layer |= {"q_norm": (self.head_dim,), "k_norm": (self.head_dim,)}
        layer |= {"output": (hidden, queries), "post_norm": (hidden,)}
        layer |= {"gate_up": (2 * inner, hidden), "down": (hidden, inner)}
        shapes: dict[str, tuple[int, ...]] = {"embedding": (self.vocab_size, hidden)}
        for i in range(self.num_layers):
            shapes |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
        shapes["norm"] = (hidden,)
        if not self.tied:
            shapes["head"] = (self.vocab_size, hidden)
        return shapes


def _refuse_variants(family: str, config: Mapping[str, Any]) -> None:
    """Settings under which the same tensors would mean another network."""
    refused = ["use_sliding_window", "mlp_bias", "quantization_config"]
    if family != "qwen2":
        refused.append("attention_bias")
    for name in refused:
        if config.get(name):
            raise _wrong(name, config[name], "false or absent; this variant is not supported")
    if config.get("hidden_act", "silu") != "silu":
        raise _wrong("hidden_act", config["hidden_act"], "silu")
    kinds = config.get("layer_types") or ()
    if not isinstance(kinds, list | tuple) or any(kind != "full_attention" for kind in kinds):
        raise _wrong("layer_types", repr(kinds)[:80], "full_attention in every layer")
    if config.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise _wrong("partial_rotary_factor", config["partial_rotary_factor"], "1.0 or absent")


def _rope(config: Mapping[str, Any]) -> tuple[float, Llama3Scaling | None]:
    """Base and scaling. transformers 5 keeps both in `rope_parameters`; before, `rope_theta` and `rope_scaling`."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise _wrong("rope_scaling", rope, "an object or null")
    theta = _number({"rope_theta": 10000.0, **_given(config), **_given(rope)}, "rope_theta")
    kind = rope.get("rope_type", rope.get("type")) or "default"
    if rope.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise _wrong("partial_rotary_factor", rope["partial_rotary_factor"], "1.0 or absent")
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise _wrong("rope_type", kind, "default or llama3")
    factor, low, high = (_number(rope, name) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    return theta, Llama3Scaling(factor, low, high, _integer(rope, "original_max_position_embeddings"))


def _given(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without the keys that are null, which mean their default."""
    return {key: value for key, value in config.items() if value is not None}


def _integer(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(name, "nothing" if value is None else repr(value), "an integer")
    return value


def _number(config: Mapping[str, Any], name: str) -> float:
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(name, "nothing" if value is None else repr(value), "a number")
    try:
        return float(value)
    except OverflowError:
        raise _wrong(name, "an integer beyond 1e308", "a number") from None


def _flag(config: Mapping[str, Any], name: str) -> bool:
    value = config.get(name, False)
    if value is not None and not isinstance(value, bool):
        raise _wrong(name, repr(value), "true or false")
    return bool(value)


def _wrong(name: str, got: object, expected: str) -> ModelError:
    do = "Use a checkpoint of a supported kind, or mend its config.json"
    return ModelError(message(f"architecture ({name})", "not usable", got=got, expected=expected, do=do))
