"""The weights that serve, and their replacement as a transaction.

In: parameters and the version that names them. Out: a `Generation`, which is all that a forward reads.

    begin -> stage tensors -> manifest (names, shapes, dtypes) -> finite? -> their digest = the version's?
          -> pack -> probe logprobs, if the publisher gave some -> swap, between two steps -> cache policy
    Any failure on the way leaves the old generation serving, and the version where it was.

Version, parameters and what is made from them change in one assignment, so none of them can be ahead of the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lockstep.engine.probe import require_probe
from lockstep.errors import InputError, NumericsError, message
from lockstep.models import Architecture
from lockstep.models.checkpoint import all_finite, digest
from lockstep.models.prepared import Prepared, prepare
from lockstep.weight_update import Probe, WeightVersion


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """One version's parameters (our own copy), what a forward multiplies by, made from them, and the version."""

    params: Mapping[str, Tensor]
    prepared: Prepared
    version: WeightVersion

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.params["embedding"].device

    @property
    def salt(self) -> str:
        """Names keys in the prefix cache. Number and content: the same content under a new number (a step that moved no
        weight) must not find keys that name a version of long ago."""
        return f"{self.version.number}@{self.version.digest}"

    @property
    def num_bytes(self) -> int:
        """Bytes held, packed copies included; a head that is a parameter itself counts once."""
        return self.prepared.num_bytes


class Weights:
    """Holds the serving generation."""

    __slots__ = ("_arch", "_current", "_device", "_dtype", "_head_dtype", "_open")

    def __init__(
        self,
        arch: Architecture,
        dtype: torch.dtype,
        head_dtype: Literal["float32", "model"],
        device: str | torch.device,
    ) -> None:
        self._arch = arch
        self._dtype = dtype
        self._head_dtype: Literal["float32", "model"] = head_dtype
        self._device = torch.device(device)
        self._current: Generation | None = None
        self._open: WeightVersion | None = None

    @property
    def serving(self) -> Generation:
        """What the next forward uses."""
        assert self._current is not None, "no weights yet"
        return self._current

    def replace(self, params: Mapping[str, Tensor], version: WeightVersion, *, share: bool = False) -> None:
        """Serve a copy of `params` (or, if shared, themselves) from now on, or raise and change nothing."""
        self._check_order(version)
        self.swap(self.build(params, version, share=share))

    def begin(self, version: WeightVersion) -> Update:
        """Start an update; nothing changes before its generation is swapped in.

        Raises `InputError` for a stale version, or if another update is open.
        """
        if self._open is not None:
            do = "Finish or cancel the one that is open"
            raise _refused(version, "one update at a time", f"{self._open} is open", "none", do)
        self._check_order(version)
        self._open = version
        return Update(self, version)

    def build(
        self, params: Mapping[str, Tensor], version: WeightVersion, *, share: bool, probe: Probe | None = None
    ) -> Generation:
        """A generation of `params` that could serve, or the error that says why it cannot; see `Engine.update_weights`.

        `share`: keep the tensors themselves; the caller promises that nobody changes them any more. Touches nothing
        that serves.
        """
        self._check_manifest(params, version)
        staged = {
            name: (params[name].detach().to(self._device, copy=not share)).contiguous()
            for name in self._arch.parameter_shapes()
        }
        for name, tensor in staged.items():
            if not all_finite(tensor):
                do = "Look for the step at which it became so; the older weights still serve"
                raise _refused(version, f"{name} must be finite", "NaN or infinity", "finite numbers", do)
        held = digest(staged)
        if held != version.digest:
            rule = "the engine must hold what the version names"
            do = "Publish the weights again; the older ones still serve"
            raise NumericsError(message(f"weights (version {version})", rule, got=held, expected=version.digest, do=do))
        generation = Generation(staged, prepare(staged, self._arch, self._head_dtype), version)
        if probe is not None:
            self.ask(probe, generation)
        return generation

    def ask(self, probe: Probe, generation: Generation) -> None:
        """Raise `NumericsError` unless `generation` gives the logprobs of `probe`."""
        require_probe(probe, generation, self._arch)

    def swap(self, generation: Generation) -> None:
        """Serve `generation` from the next forward on."""
        self._check_order(generation.version)
        self._current = generation

    def close(self) -> None:
        """The open update is over, whatever came of it."""
        self._open = None

    def _check_order(self, version: WeightVersion) -> None:
        """Versions rise; the present one may come again (a reload) if it is the same."""
        if self._current is None or version == self._current.version or version.number > self._current.version.number:
            return
        do = "Publish under the next number"
        raise _refused(version, "versions rise", version, f"more than {self._current.version}", do)

    def _check_manifest(self, params: Mapping[str, Tensor], version: WeightVersion) -> None:
        do = "Publish every parameter of the model, in the engine's dtype"
        shapes = self._arch.parameter_shapes()
        missing, extra = [n for n in shapes if n not in params], [n for n in params if n not in shapes]
        if missing:
            raise _refused(version, "every parameter must be there", f"no {missing[0]}", f"{len(shapes)} tensors", do)
        if extra:
            raise _refused(version, "no other tensor may be there", extra[0], f"the {len(shapes)} of the model", do)
        for name, shape in shapes.items():
            tensor = params[name]
            if tuple(tensor.shape) != shape:
                raise _refused(version, f"shape of {name}", tuple(tensor.shape), shape, do)
            if tensor.dtype != self._dtype:
                raise _refused(version, f"dtype of {name}", tensor.dtype, self._dtype, do)


class Update:
    """An open update: tensors come in one by one, in any order; a generation is made from all of them.

    `prepare` may run in another thread while the engine steps: whoever does that leaves nothing for the moment of the
    swap but an assignment.
    """

    __slots__ = ("_params", "_ready", "_weights", "version")

    def __init__(self, weights: Weights, version: WeightVersion) -> None:
        self._weights = weights
        self._params: dict[str, Tensor] = {}
        self._ready: Generation | None = None
        self.version = version

    def stage(self, name: str, tensor: Tensor) -> None:
        """Take a copy of one tensor. Raises `InputError` if it came already."""
        if name in self._params:
            do = "Send every tensor once"
            raise _refused(self.version, "every parameter comes once", f"{name} twice", "once", do)
        self._ready = None
        self._params[name] = tensor.detach().clone()

    def prepare(self, probe: Probe | None = None) -> None:
        """Verify what was staged, pack it, and ask it for the logprobs of `probe`; nothing serves it yet.

        Raises what `Engine.update_weights` raises; the update is open still, for what is missing or to be cancelled.
        """
        self._ready = self._weights.build(self._params, self.version, share=True, probe=probe)

    def finish(self, probe: Probe | None = None) -> Generation:
        """Close the update; the generation of what was staged, or the error that says why it cannot serve."""
        try:
            if self._ready is None:
                self.prepare(probe)
            elif probe is not None:
                self._weights.ask(probe, self._ready)
            assert self._ready is not None, "prepared"
            return self._ready
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Close the update; nothing has changed."""
        self._params, self._ready = {}, None
        self._weights.close()


def _refused(version: WeightVersion, rule: str, got: object, expected: object, do: str) -> InputError:
    return InputError(message(f"weights (version {version})", rule, got=got, expected=expected, do=do))
