"""The smallest failing case of a qualification: two configurations, and completions that they score differently.

In: arrays and settings of any source. Out: `Completion`, `Case`.

Letters: P prompt tokens, T drawn tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lockstep.errors import InputError, message
from lockstep.parity.qualify.difference import plain, shown

DTYPES: Mapping[str, str] = {"prompt_ids": "<i4", "token_ids": "<i4", "old_logprobs": "<f4", "new_logprobs": "<f4"}
"""The arrays of a completion, and the type that each must have (little-endian int32 and float32)."""


@dataclass(frozen=True, slots=True, eq=False)
class Completion:
    """`prompt_ids` int32 [P] and `token_ids` int32 [T], with the logprobs float32 [T] (natural log) of both sides.

    Logprobs may be NaN or infinite where that is what a side gave. `prompt` is the text, where there is one. Raises
    `InputError` for other types or shapes.
    """

    id: str
    prompt_ids: np.ndarray
    token_ids: np.ndarray
    old_logprobs: np.ndarray
    new_logprobs: np.ndarray
    prompt: str = ""

    def __post_init__(self) -> None:
        for name, text in (("id", self.id), ("prompt", self.prompt)):
            plain(f"completion's {name}", text)
            assert isinstance(text, str), f"{name} is text"
        tokens = len(self.token_ids)
        for name, dtype in DTYPES.items():
            array = getattr(self, name)
            right = isinstance(array, np.ndarray) and array.ndim == 1 and array.dtype == np.dtype(dtype)
            if not right or (name != "prompt_ids" and len(array) != tokens):
                raise InputError(
                    message(
                        f"completion ({shown(self.id)})",
                        f"{name} must be an array with one {np.dtype(dtype).name} a token",
                        got=f"{getattr(array, 'dtype', type(array).__name__)} {list(np.shape(array))}",
                        expected=f"{np.dtype(dtype).name} [{'P' if name == 'prompt_ids' else tokens}]",
                        do="Cast it, and cut all of a completion's arrays at the same token",
                    )
                )

    @property
    def mean(self) -> float:
        """Mean |new - old| over tokens, in nats; NaN without tokens or where a logprob is not finite."""
        with np.errstate(invalid="ignore"):
            far = np.abs(self.new_logprobs.astype(np.float64) - self.old_logprobs.astype(np.float64))
        return float(far.mean()) if len(far) else float("nan")


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """`old` and `new` are all resolved settings by name, plain values; `rerun` is the command that runs it again.

    `verdict` is the line of the qualification, `facts` what else a person needs (versions, machine).
    """

    old: Mapping[str, object]
    new: Mapping[str, object]
    completions: Sequence[Completion]
    verdict: str
    rerun: str
    facts: Mapping[str, str] = field(default_factory=dict)
