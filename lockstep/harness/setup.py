"""What a laboratory runs: a small training, every setting decided by one seed.

In: a seed. Out: `Setup`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from lockstep.core import SamplingParams
from lockstep.harness.draws import Draws
from lockstep.harness.networks import FAMILIES

_ASKED = {field.name for field in fields(SamplingParams)}


@dataclass(frozen=True, slots=True)
class Setup:
    """A training of `prompts` x `params.n` completions a step. `prefix` tokens begin every prompt, so that prompts meet
    in the prefix cache, and 2 to `tail` follow; `in_flight`: new weights come while tokens are being drawn.

    `exact`: engine and trainer are one computation in `dtype`. Otherwise the engine computes in float32 what the
    trainer computes in bfloat16 with the same (bfloat16) weights: two honest implementations, which differ by rounding.
    """

    seed: int = 0
    family: str = "llama"
    dtype: Literal["bfloat16", "float32"] = "float32"
    exact: bool = True
    params: SamplingParams = field(default_factory=lambda: SamplingParams(max_tokens=12, n=4, ignore_eos=True))
    prompts: int = 4
    prefix: int = 40
    tail: int = 10
    in_flight: bool = False
    lr: float = 3e-3
    pages: int = 96
    max_sequences: int = 24
    max_tokens_per_step: int = 64

    @classmethod
    def random(cls, seed: int, **fixed: Any) -> Setup:
        """A setup that a seed decides; `fixed` fields are as given, those of `SamplingParams` too."""
        d = Draws(seed, "setup")
        asked = {name: fixed.pop(name) for name in list(fixed) if name in _ASKED}
        exact = fixed.get("exact", d.chance(0.5))
        params = SamplingParams(
            temperature=d.choice((0.6, 0.7, 0.8, 1.0, 1.0, 1.2)),
            top_k=d.integer(5, 40) if exact and d.chance(0.2) else 0,
            top_p=d.number(0.7, 0.98) if exact and d.chance(0.2) else 1.0,
            repetition_penalty=d.number(1.05, 1.3) if exact and d.chance(0.15) else 1.0,
            frequency_penalty=d.number(0.1, 0.8) if exact and d.chance(0.15) else 0.0,
            max_tokens=d.integer(8, 16),
            n=d.choice((2, 4)),
            seed=seed,
            ignore_eos=d.chance(0.7),
        )
        drawn = cls(
            seed=seed,
            family=d.choice(FAMILIES),
            dtype=d.choice(("float32", "bfloat16")) if exact else "bfloat16",
            exact=exact,
            params=params,
            prompts=8 // params.n + d.integer(1, 3),
            prefix=d.integer(33, 60),
            in_flight=d.chance(0.3),
            max_tokens_per_step=d.choice((24, 64, 256)),
        )
        drawn = replace(drawn, **fixed)
        return replace(drawn, params=replace(drawn.params, **asked))
