"""The published weights of the last versions, for scoring what older ones sampled.

In: parameters as they are published, with their version. Out: the parameters of a version by its number.

    add(v4) --> [ v2 v3 v4 ] --> parameters(3)
                  ^ dropped when v5 comes, if 3 are kept
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from lockstep.errors import InputError, message
from lockstep.models.checkpoint import digest
from lockstep.models.decoder import Parameters
from lockstep.weight_update import WeightVersion


class WeightHistory:
    """The newest `keep` versions. It refers to the tensors it is given and never copies them: give it snapshots that
    nobody changes any more, such as the engine's own copy. `check` proves that nobody has.

    Raises `InputError` if `keep` is less than 1.
    """

    __slots__ = ("_held", "keep")

    def __init__(self, keep: int) -> None:
        if keep < 1:
            do = "Keep the present version, and one more for each step of lag"
            raise InputError(
                message("weight history (keep)", "it holds versions", got=keep, expected="at least 1", do=do)
            )
        self.keep = keep
        self._held: dict[int, tuple[WeightVersion, Parameters]] = {}  # by rising number

    def __len__(self) -> int:
        return len(self._held)

    @property
    def versions(self) -> tuple[WeightVersion, ...]:
        """The versions that are held, oldest first."""
        return tuple(version for version, _ in self._held.values())

    @property
    def by_number(self) -> Mapping[int, Parameters]:
        """The parameters that are held now, by version number: a copy of the table, not of the tensors."""
        return MappingProxyType({number: params for number, (_, params) in self._held.items()})

    def add(self, version: WeightVersion, params: Parameters) -> None:
        """Hold the parameters of the newest version; the oldest goes if there are too many.

        The newest may be added again, if it is the same: its tensors then replace those that were held. Raises
        `InputError` for an older number, or the newest with another digest.
        """
        if self._held:
            newest = self.versions[-1]
            if version.number < newest.number or (version.number == newest.number and version != newest):
                expected, do = f"{newest} again, or a higher number", "Publish under the next number"
                raise InputError(
                    message(
                        f"weight history (version {version})", "versions rise", got=version, expected=expected, do=do
                    )
                )
        self._held[version.number] = (version, MappingProxyType(dict(params)))
        while len(self._held) > self.keep:
            del self._held[next(iter(self._held))]

    def parameters(self, number: int) -> Parameters:
        """The parameters of a version. Raises `InputError` if it is gone, or was never there."""
        if number not in self._held:
            held = ", ".join(map(str, self._held)) or "none"
            rule = f"only the newest {self.keep} are kept"
            do = "Keep more versions, or ask sooner"
            raise InputError(
                message(
                    f"weight history (version {number})", rule, got="no such version", expected=f"one of {held}", do=do
                )
            )
        return self._held[number][1]

    def check(self) -> None:
        """Prove that every version that is held still names its tensors, in order, and that none is one too many."""
        assert len(self._held) <= self.keep, f"{len(self._held)} versions, {self.keep} to keep"
        numbers = [version.number for version, _ in self._held.values()]
        assert numbers == sorted(self._held) == list(self._held), f"versions out of order: {numbers}"
        for version, params in self._held.values():
            assert digest(params) == version.digest, f"the tensors of version {version} were changed"
