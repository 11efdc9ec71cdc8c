"""Weights as a forward multiplies by them: those of the products and the head, laid out once for each change.

In: parameters. Out: `Prepared`, derived state: whoever changes a weight prepares anew. Digests, checks and what is
published are about the parameters; everything that computes goes through here, so engine and trainer cannot differ.

Letters: V vocabulary, E hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lockstep.kernels.linear import Packed, pack
from lockstep.models.architecture import Architecture
from lockstep.models.decoder import PRODUCTS, Operands, Parameters


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """The operands of `decoder.hidden_states`, and the weight [V, E] of the logits' product."""

    operands: Operands
    head: Packed

    @property
    def current(self) -> bool:
        """Whether no weight was written to since it was prepared (a change behind torch's back does not show)."""
        return all(packed.current for packed in self._packed())

    @property
    def num_bytes(self) -> int:
        """Bytes held, parameters included; memory that has two names counts once."""
        tensors = [x for x in self.operands.values() if isinstance(x, Tensor)]
        for packed in self._packed():
            tensors += (packed.weight_OI, packed.content)
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())

    def _packed(self) -> Iterator[Packed]:
        yield from (x for x in self.operands.values() if isinstance(x, Packed))
        yield self.head


class Kept:
    """Prepared weights, kept for as long as they are asked for with the same tensors and nobody writes to these."""

    __slots__ = ("_arch", "_head_dtype", "_prepared", "_tensors")

    def __init__(self, arch: Architecture, head_dtype: Literal["float32", "model"]) -> None:
        self._arch = arch
        self._head_dtype: Literal["float32", "model"] = head_dtype
        self._tensors: dict[str, Tensor] = {}
        self._prepared: Prepared | None = None

    def of(self, params: Parameters) -> Prepared:
        """Those of `params`. What was prepared before gives way first, so that there are never two."""
        same = params.keys() == self._tensors.keys() and all(params[name] is x for name, x in self._tensors.items())
        if self._prepared is None or not same or not self._prepared.current:
            self._prepared = None
            self._tensors = dict(params)
            self._prepared = prepare(params, self._arch, self._head_dtype)
        return self._prepared


def prepare(params: Parameters, arch: Architecture, head_dtype: Literal["float32", "model"]) -> Prepared:
    """Pack the weights of products and the head. Differentiable where the parameters are."""
    names = {f"layers.{i}.{part}" for i in range(arch.num_layers) for part in PRODUCTS}
    operands = {name: pack(tensor) if name in names else tensor for name, tensor in params.items()}
    return Prepared(operands, head_weight(params, arch, head_dtype))


def head_weight(params: Parameters, arch: Architecture, head_dtype: Literal["float32", "model"]) -> Packed:
    """The weight [V, E] of the logits' product, packed; with an fp32 head its products are summed and kept in fp32."""
    return pack(params["embedding" if arch.tied else "head"], wide=head_dtype == "float32")
