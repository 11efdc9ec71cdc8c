"""Weights between HF safetensors on disk and the fused layout that the forward pass uses.

In: an HF directory (one safetensors file, or shards with an index). Out: `dict[str, Tensor]` with the names and shapes
of `Architecture.parameter_shapes`; and back, bit for bit.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from blake3 import blake3
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lockstep.errors import ModelError, StorageError, message
from lockstep.models.architecture import Architecture
from lockstep.models.directory import read_json, whole_directory, write_json

if TYPE_CHECKING:
    from lockstep.models import Model

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_TOKENIZER = "tokenizer.json"
_COPIED = (
    "generation_config.json", _TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
    "added_tokens.json", "vocab.json", "merges.txt", "LICENSE",
)  # fmt: skip
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_OBSOLETE = ".rotary_emb.inv_freq"  # a buffer in old checkpoints; follows from the config
_HF_LAYER = {
    "input_norm": ("input_layernorm.weight",),
    "qkv": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "qkv_bias": ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"),
    "q_norm": ("self_attn.q_norm.weight",),
    "k_norm": ("self_attn.k_norm.weight",),
    "output": ("self_attn.o_proj.weight",),
    "post_norm": ("post_attention_layernorm.weight",),
    "gate_up": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "down": ("mlp.down_proj.weight",),
}
_HF_TOP = {"embedding": "model.embed_tokens.weight", "norm": "model.norm.weight", "head": "lm_head.weight"}


def hf_shapes(arch: Architecture) -> dict[str, tuple[int, ...]]:
    """HF name -> shape of every tensor that a checkpoint of this architecture holds."""
    return {name: shape for pieces in _pieces(arch).values() for name, shape in pieces}


def to_hf(params: Mapping[str, Tensor], arch: Architecture) -> dict[str, Tensor]:
    """HF-named views of the fused parameters. Raises `ModelError` if names or shapes are not those of `arch`."""
    _check_manifest({name: tuple(t.shape) for name, t in params.items()}, arch.parameter_shapes(), "parameters")
    tensors: dict[str, Tensor] = {}
    for name, pieces in _pieces(arch).items():
        parts = params[name].split([shape[0] for _, shape in pieces])
        tensors |= {hf_name: part for (hf_name, _), part in zip(pieces, parts, strict=True)}
    return tensors


def from_hf(tensors: Mapping[str, Tensor], arch: Architecture) -> dict[str, Tensor]:
    """Fused parameters from HF-named tensors; unfused ones are not copied. The inverse of `to_hf`."""
    _check_manifest({name: tuple(t.shape) for name, t in tensors.items()}, hf_shapes(arch), "tensors")
    params: dict[str, Tensor] = {}
    for name, pieces in _pieces(arch).items():
        parts = [tensors[hf_name] for hf_name, _ in pieces]
        params[name] = parts[0] if len(parts) == 1 else torch.cat(parts)
    return params


def read_parameters(
    directory: Path, arch: Architecture, dtype: torch.dtype, device: str | torch.device = "cpu"
) -> dict[str, Tensor]:
    """Read every parameter, cast to `dtype`, into memory of our own (the file may change afterwards).

    Raises `ModelError` naming the tensor: missing, extra, of another shape or dtype, not finite; or the file:
    truncated, not safetensors, absent.
    """
    with ExitStack() as files:
        sources = _open_tensors(directory, files)
        shapes = _stored_shapes(directory, sources, arch)
        _check_manifest(shapes, hf_shapes(arch), str(directory))
        params: dict[str, Tensor] = {}
        for name, pieces in _pieces(arch).items():
            fused = torch.empty(arch.parameter_shapes()[name], dtype=dtype, device=device)
            for (hf_name, shape), rows in zip(pieces, fused.split([s[0] for _, s in pieces]), strict=True):
                rows.copy_(_load(sources[hf_name], hf_name, directory).reshape(shape))
                if not all_finite(rows):
                    raise _bad(directory, hf_name, "every value must be finite", "NaN or infinity", f"finite {dtype}")
            params[name] = fused
        return params


def write_model(directory: Path, params: Mapping[str, Tensor], arch: Architecture, source: Path | Model) -> None:
    """Write an HF directory that transformers loads: weights and config, tokenizer files copied from `source`.

    The directory appears in one rename, replacing an older one. Raises `StorageError` when the disk refuses.
    """
    origin = source if isinstance(source, Path) else source.path
    if not (origin / _TOKENIZER).is_file():
        raise _bad(origin, _TOKENIZER, "the source must hold the tokenizer", "no such file", _TOKENIZER)
    config = read_json(origin / "config.json")
    with whole_directory(directory) as partial:
        write_network(partial, params, arch, config)
        for name in _COPIED:
            if (origin / name).is_file():
                shutil.copyfile(origin / name, partial / name)


def write_network(directory: Path, params: Mapping[str, Tensor], arch: Architecture, config: Mapping[str, Any]) -> None:
    """Write `config.json` (`config`, overruled by what `arch` decides) and `model.safetensors` into a directory."""
    tensors = {name: tensor.detach() for name, tensor in to_hf(params, arch).items()}
    dtype = str(params["embedding"].dtype).removeprefix("torch.")
    kept = {key: value for key, value in config.items() if key not in ("rope_parameters", "torch_dtype")}
    write_json(directory / "config.json", {**kept, **arch.to_hf(), "dtype": dtype})
    try:
        save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
        (directory / WEIGHTS).chmod(0o644)  # it is written for the owner alone
    except SafetensorError as cause:  # its words for an I/O error
        do = "Free space or choose another directory"
        expected = "a writable directory with enough space"
        raise StorageError(
            message(f"storage ({directory / WEIGHTS})", "it must be written whole", got=cause, expected=expected, do=do)
        ) from None


def digest(params: Mapping[str, Tensor]) -> str:
    """BLAKE3 (hex) over name, dtype, shape and bytes of every parameter, in the order of their names.

    It is asked for at every version, and takes a fifth of SHA-256's time. Each tensor is hashed alone and the list of
    hashes is hashed, so that threads change the time and not the result.
    CPU tensors are not copied.
    """
    names = sorted(params)
    with ThreadPoolExecutor(max_workers=2) as pool:  # hashing releases the GIL
        digests = list(pool.map(lambda name: _tensor_digest(params[name]), names))
    lines = [
        f"{name} {str(params[name].dtype).removeprefix('torch.')} {tuple(params[name].shape)} {content}\n"
        for name, content in zip(names, digests, strict=True)
    ]
    return blake3("".join(lines).encode()).hexdigest()


def all_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite: one pass over memory, where `isfinite` makes five and takes eight times as
    long. NaN goes through `aminmax`."""
    low, high = torch.aminmax(tensor)
    return math.isfinite(low) and math.isfinite(high)


def _tensor_digest(tensor: Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return blake3(flat.view(torch.uint8).numpy().data).hexdigest()


def _pieces(arch: Architecture) -> dict[str, tuple[tuple[str, tuple[int, ...]], ...]]:
    """Internal name -> the HF tensors (name, shape) stacked in its rows."""
    queries, keys = arch.num_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
    rows = {"qkv": (queries, keys, keys), "qkv_bias": (queries, keys, keys), "gate_up": (arch.intermediate_size,) * 2}
    table = {}
    for name, shape in arch.parameter_shapes().items():
        if name in _HF_TOP:
            table[name] = ((_HF_TOP[name], shape),)
            continue
        _, index, kind = name.split(".")
        heights = rows.get(kind, shape[:1])
        table[name] = tuple(
            (f"model.layers.{index}.{part}", (height, *shape[1:]))
            for part, height in zip(_HF_LAYER[kind], heights, strict=True)
        )
    return table


def _open_tensors(directory: Path, files: ExitStack) -> dict[str, Any]:
    """HF name -> the open safetensors file that holds it."""
    shards = {WEIGHTS: None} if (directory / WEIGHTS).is_file() else _shards(directory)
    sources: dict[str, Any] = {}
    for shard, promised in shards.items():
        try:
            file = files.enter_context(safe_open(directory / shard, framework="pt"))
            names = list(file.keys())
        except (SafetensorError, OSError) as cause:
            raise _bad(directory, shard, "the file must be whole safetensors", cause, "all shards, complete") from None
        for name in names if promised is None else promised:
            if name not in names:
                raise _bad(
                    directory, name, f"the index promises it in {shard}", "not there", "every tensor of the index"
                )
            sources[name] = file
        unlisted = sorted(set(names) - set(sources))
        if unlisted:
            raise _bad(directory, unlisted[0], f"{shard} holds it", "not in the index", "every tensor in the index")
    return sources


def _shards(directory: Path) -> dict[str, list[str]]:
    if not (directory / INDEX).is_file():
        files = sorted(directory.iterdir()) if directory.is_dir() else []
        found = [file.name for file in files if file.suffix in (".bin", ".gguf", ".safetensors", ".pt", ".pth")]
        got = ", ".join(found) or ("no weights" if directory.is_dir() else "no such directory")
        raise _bad(directory, WEIGHTS, "the weights must be there", got, f"{WEIGHTS} or {INDEX}")
    weight_map = read_json(directory / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _bad(directory, INDEX, "weight_map must list tensors", repr(weight_map)[:60], "an object: tensor -> file")
    shards: dict[str, list[str]] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise _bad(directory, name, "the index must name a file beside it", repr(shard), "a plain file name")
        shards.setdefault(shard, []).append(name)
    return shards


def _stored_shapes(directory: Path, sources: dict[str, Any], arch: Architecture) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that must match; drops the redundant ones in place."""
    for name in [n for n in sources if n.endswith(_OBSOLETE)]:
        del sources[name]
    head, embedding = _HF_TOP["head"], _HF_TOP["embedding"]
    if arch.tied and head in sources and embedding in sources:
        if not torch.equal(_load(sources[head], head, directory), _load(sources[embedding], embedding, directory)):
            rule = "tie_word_embeddings is true, so it must equal the embedding"
            raise _bad(directory, head, rule, "other values", "equal values, or tie_word_embeddings: false")
        del sources[head]
    shapes = {}
    for name, file in sources.items():
        stored = file.get_slice(name)
        if stored.get_dtype() not in _DTYPES:
            raise _bad(directory, name, "weights must be floating point", stored.get_dtype(), "one of F32, F16, BF16")
        shapes[name] = tuple(stored.get_shape())
    return shapes


def _load(file: Any, name: str, directory: Path) -> Tensor:
    try:
        return file.get_tensor(name)
    except (SafetensorError, OSError) as cause:
        raise _bad(directory, name, "the tensor must be readable", cause, "a whole file") from None


def _check_manifest(got: Mapping[str, Sequence[int]], expected: Mapping[str, Sequence[int]], subject: str) -> None:
    missing = [name for name in expected if name not in got]
    extra = [name for name in got if name not in expected]
    if missing or extra:
        found = "; ".join(
            f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for kind, names in (("missing", missing), ("extra", extra))
            if names
        )
        do = "Check that config.json belongs to these weights"
        expected_words = f"exactly the {len(expected)} of the config"
        raise ModelError(
            message(f"checkpoint ({subject})", "tensors must match", got=found, expected=expected_words, do=do)
        )
    for name, shape in expected.items():
        if tuple(got[name]) != tuple(shape):
            raise ModelError(
                message(
                    f"tensor ({name})", f"its shape in {subject} must follow from the config", got=tuple(got[name]),
                    expected=tuple(shape), do="Check that config.json belongs to these weights",
                )
            )  # fmt: skip


def _bad(directory: Path, name: str, rule: str, got: object, expected: object) -> ModelError:
    do = "Copy or pull the model again"
    return ModelError(message(f"checkpoint ({directory}: {name})", rule, got=got, expected=expected, do=do))
