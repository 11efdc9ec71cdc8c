"""What an audit asks of both sides: real text, prompts that begin alike, more prompts at every step.

In: a tokenizer, sampling parameters. Out: requests, the same for the same step.

A beginning of more than one page of any engine's cache is common to all prompts, so that a step finds in the prefix
cache what an earlier one left there; if weights came between, it should not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lockstep.core import Request, SamplingParams
from lockstep.errors import InputError, message
from lockstep.models import Tokenizer
from lockstep.numerics import request_key, uniforms

TEXT = """The river rises in the hills above the town and runs north for ninety miles before it meets the sea. In
spring, when the snow melts, it carries so much water that the meadows on both banks are flooded, and the farmers move
their cattle to the higher fields. The mill at the second bridge was built in 1784; its wheel turned until the great
flood of 1912 took the weir away. Today the building is a school. Children learn there how to measure the speed of the
current with a cork, a string and a watch: throw the cork, count the seconds, divide the length by the time. On a quiet
day in August the answer is about three feet in a second, in April it may be eleven. The teacher writes every result on
the wall beside the door, with the date, and the list is now older than she is."""
"""Ours; about 170 tokens of a common vocabulary, more than the 128 of vLLM's pages on a CPU."""

ENDINGS = (
    "Question: What is {a} plus {b}? Answer:",
    "On the {a}th of the month the cork took {b} seconds, so the river ran",
    "A farmer with {a} cows and {b} sheep went to the bridge and",
    "The oldest entry on the wall, number {a}, says {b} feet, because",
)

BEGINNING, LONG = 144, 256
"""Tokens of `TEXT` that are kept (still more than a page) if a tokenizer makes more than `LONG` of it, one a character
say: small models have little room."""


@dataclass(frozen=True, slots=True)
class Workload:
    """`prompts` x `params.n` completions a step, for `steps` steps, new weights before every step but the first.

    `floor` batches are drawn before that, on whose tokens the noise floor is measured. Raises `InputError` for none.
    """

    params: SamplingParams = field(default_factory=lambda: SamplingParams(max_tokens=24, n=4, ignore_eos=True))
    prompts: int = 4
    steps: int = 3
    floor: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("prompts", "steps", "floor"):
            if getattr(self, name) < 1:
                got = getattr(self, name)
                raise InputError(
                    message(f"workload ({name})", "out of range", got=got, expected="1 or more", do="Raise it")
                )

    def requests(self, tokenizer: Tokenizer, step: int) -> list[Request]:
        """Those of a step; negative ones are of the floor."""
        asked = []
        whole = tokenizer.encode(TEXT.replace("\n", " "))
        beginning = whole if len(whole) < LONG else whole[:BEGINNING]
        for i in range(self.prompts):
            a, b, seed = self._drawn(step, i)
            ending = ENDINGS[i % len(ENDINGS)].format(a=2 + int(a * 98), b=2 + int(b * 98))
            ids = (*beginning, *tokenizer.encode(" " + ending))
            params = replace(self.params, seed=int(seed * 2**31))
            asked.append(Request(f"s{step}p{i}", ids, params, task_id=f"{step}/{i}"))
        return asked

    def _drawn(self, step: int, prompt: int) -> tuple[float, float, float]:
        """Three uniforms of a prompt."""
        key = request_key(self.seed, f"workload of step {step}", prompt)
        a, b, c = uniforms(np.tile(key, (3, 1)), np.arange(3)).tolist()
        return a, b, c

    def plain(self) -> Mapping[str, Any]:
        """All of it as plain values, for a record."""
        names = ("temperature", "top_k", "top_p", "min_p", "max_tokens", "n", "repetition_penalty",
                 "frequency_penalty", "presence_penalty")  # fmt: skip
        sampling = {name: getattr(self.params, name) for name in names}
        return {"prompts": self.prompts, "steps": self.steps, "floor": self.floor, "seed": self.seed, **sampling}
