"""What is asked: prompts of running text as token ids of the model's own tokenizer.

In: a tokenizer, a round. Out: prompts, a function of the arguments alone; no two of a run begin at the same place, in
whatever round, so that no prefix cache helps anyone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lockstep.models import Tokenizer
from lockstep.numerics import request_key

TEXT = Path(__file__).with_name("text.txt")


@dataclass(frozen=True, slots=True)
class Workload:
    """`count` prompts a round, of `shortest` to `longest` tokens, all lengths alike likely."""

    count: int
    shortest: int
    longest: int
    seed: int = 0

    def prompts(self, tokenizer: Tokenizer, number: int) -> list[list[int]]:
        """The prompts of round `number`: pieces of the text, each begun at a token where no other one begins."""
        ids = tokenizer.encode(TEXT.read_text(encoding="utf-8"))
        starts = _order(len(ids) - self.longest, self.seed)
        places = range(number * self.count, (number + 1) * self.count)
        assert places.stop <= len(starts), f"the text has room for {len(starts)} prompts, asked for {places.stop}"
        lengths = self._lengths(number)
        return [ids[starts[place] : starts[place] + length] for place, length in zip(places, lengths, strict=True)]

    def _lengths(self, number: int) -> list[int]:
        raw = np.random.Philox(key=request_key(self.seed, "bench/lengths", number)).random_raw(self.count)
        span = np.uint64(self.longest - self.shortest + 1)
        return [self.shortest + int(value % span) for value in raw]


def _order(count: int, seed: int) -> list[int]:
    raw = np.random.Philox(key=request_key(seed, "bench/starts", 0)).random_raw(count)
    return np.argsort(raw, kind="stable").tolist()
