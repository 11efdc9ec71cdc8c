"""The start-up probe: are rows really invariant here? Nothing is assumed of a CPU, a BLAS or a thread count.

In: the weights a run will use. Out: a finding per shape for the run's manifest. A shape that fails stops the run,
because every promise of parity rests on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lockstep.errors import NumericsError, message
from lockstep.kernels.activation import silu_mul
from lockstep.kernels.attention import KEY_BLOCK, Packing, packed_attention, paged_attention, plan_tiles
from lockstep.kernels.distribution import Chosen, score
from lockstep.kernels.linear import Packed, linear, pack, way_of
from lockstep.kernels.native.library import operators_for
from lockstep.kernels.norm import rms_norm
from lockstep.kernels.rope import inverse_frequencies, rotate, rotation
from lockstep.kernels.threads import thread_counts, using_threads

ROWS = (1, 2, 3, 5, 8, 13, 16, 31, 64)
TOTAL = 96


@dataclass(frozen=True, slots=True)
class Subject:
    """What one run computes with: its weights by name (one of each shape is enough) and the form of its attention."""

    weights: Mapping[str, Tensor]
    head: Packed  # of the logits' product
    heads: tuple[int, int, int]  # query heads, kv heads, head dim
    seed: int = 0


def invariance_probe(subject: Subject) -> dict[str, str]:
    """Compare every kernel on few rows, any offset, one thread and all, with the same rows among many.

    Returns ``{"linear [960, 576]": how rows are cut, "rms_norm [576]": "use", ...}`` and the seconds it took.
    Raises `NumericsError` naming the first kernel whose bits depend on a row's neighbours.
    """
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(subject.seed)
    findings: dict[str, str] = {}
    products = {n: w for n, w in subject.weights.items() if w.dim() == 2 and n not in ("embedding", "head")}
    for weight in {tuple(w.shape): w for w in products.values()}.values():
        x = torch.randn(TOTAL, weight.shape[1], generator=generator).to(weight)
        name = f"linear {list(weight.shape)} {_dtype(weight)}"
        _require(name, lambda rows, w=weight: linear(rows, w), x)
        packed = pack(weight)
        _require(f"packed {name}", lambda rows, w=weight, p=packed: linear(rows, p if len(rows) < TOTAL else w), x)
        findings[name] = str(way_of(weight.shape[0], weight.shape[1], weight.dtype, weight.device))
    findings |= _head(subject.head, generator)
    body = subject.weights["embedding"]
    vocabulary, width = body.shape
    dtype, device = body.dtype, body.device
    gain = torch.ones(width, dtype=dtype, device=device)
    head_dim = subject.heads[2]
    rowwise: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
        f"rms_norm [{width}]": (lambda rows: rms_norm(rows.to(dtype), gain, 1e-5), width),
        f"rotate [{head_dim}]": (lambda rows: _rotated(rows.to(dtype), head_dim), 3 * head_dim),
        f"silu_mul [{width}]": (lambda rows: silu_mul(rows.to(dtype)), 2 * width),
        f"logprob [{vocabulary}]": (_logprobs, vocabulary),
    }
    for name, (kernel, columns) in rowwise.items():
        _require(name, kernel, torch.randn(TOTAL, columns, generator=generator).to(device))
        findings[name] = "use"
    findings[f"attention {list(subject.heads)}"] = _attention(subject, generator, dtype, device)
    findings["kernels"] = "use PyTorch" if operators_for(body) is None else "use C++"
    findings["seconds"] = f"{time.perf_counter() - started:.2f}"
    return findings


def _head(head: Packed, generator: torch.Generator) -> dict[str, str]:
    """The product that gives logits, as engine and trainer take it."""
    weight = head.weight_OI
    x = torch.randn(TOTAL, weight.shape[1], generator=generator).to(head.content)
    name = f"head {list(weight.shape)} {_dtype(weight)}{', fp32 logits' * head.wide}"
    _require(name, lambda rows: linear(rows, head), x)
    return {name: str(way_of(weight.shape[0], weight.shape[1], weight.dtype, weight.device, head.wide))}


def _require(name: str, kernel: Callable[[Tensor], Tensor], x: Tensor) -> None:
    found = _differing(kernel, x)
    if found is not None:
        raise NumericsError(
            message(
                f"invariance probe ({name})",
                "a row's bits must not depend on its neighbours",
                got=found,
                expected="equal bits",
                do="Set engine.dtype to the other of bfloat16 and float32, and report this machine",
            )
        )


def _differing(kernel: Callable[[Tensor], Tensor], x: Tensor) -> str | None:
    """The first (rows, offset, threads) whose bits differ from the same rows among all, or None."""
    whole = kernel(x)
    for threads in thread_counts():
        with using_threads(threads):
            for i, rows in enumerate(ROWS):
                offset = (7 * i) % (x.shape[0] - rows + 1)
                if not torch.equal(kernel(x[offset : offset + rows].contiguous()), whole[offset : offset + rows]):
                    return f"{rows} rows at {offset} with {threads} threads differ"
    return None


def _attention(subject: Subject, generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> str:
    """Every position decoded alone must equal the prefill of all and the packed forward of training."""
    H, K, D = subject.heads
    length = 2 * KEY_BLOCK + 5
    blocks = -(-length // KEY_BLOCK)
    q = torch.randn(length, H, D, generator=generator).to(device, dtype)
    k, v = (torch.randn(blocks, K, KEY_BLOCK, D, generator=generator).to(device, dtype) for _ in range(2))
    table = [range(blocks)]
    whole = paged_attention(q, k, v, plan_tiles([0], [length], table, device=device), D**-0.5)
    k_TKD, v_TKD = (x.transpose(1, 2).flatten(0, 1)[:length] for x in (k, v))
    packed = packed_attention(q, k_TKD, v_TKD, Packing.of([length], device), D**-0.5)
    if not torch.equal(packed, whole):
        raise _disagreement(subject, "the packed forward differs from prefill")
    for threads in thread_counts():
        with using_threads(threads):
            for some in ([length - 1], [0, 17, 30], list(range(length))):
                tiles = plan_tiles(some, [1] * len(some), table * len(some), device=device)
                if not torch.equal(paged_attention(q[some], k, v, tiles, D**-0.5), whole[some]):
                    raise _disagreement(subject, f"{len(some)} decoded rows with {threads} threads differ from prefill")
    return "use"


def _disagreement(subject: Subject, got: str) -> NumericsError:
    return NumericsError(
        message(
            f"invariance probe (attention {list(subject.heads)})",
            "decode, prefill and training must agree",
            got=got,
            expected="equal bits",
            do="Set engine.dtype to the other of bfloat16 and float32, and report this machine",
        )
    )


def _logprobs(rows: Tensor) -> Tensor:
    """Logprob of one token and entropy, [N, 2]."""
    scored = score(rows, Chosen(torch.zeros(len(rows), dtype=torch.int64, device=rows.device), 0.7))
    return torch.stack((scored.logprobs_N, scored.entropy_N), 1)


def _rotated(rows: Tensor, head_dim: int) -> Tensor:
    """Rows of three heads turned by one angle."""
    positions = torch.full((rows.shape[0],), 3, device=rows.device)
    angles = rotation(inverse_frequencies(head_dim, 10000.0).to(rows.device), positions)
    return rotate(rows.view(-1, 3, head_dim), *angles)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
