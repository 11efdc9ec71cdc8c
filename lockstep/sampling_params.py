"""How tokens are drawn: `SamplingParams`, with vLLM's names, and what they do to the logits, in words that compare.

In: nothing of ours. Out: a frozen value that a request, a rollout and a file of rollouts carry.

>>> SamplingParams(repetition_penalty=1.1, logit_bias=((5, -2.0),)).adjustments
'repetition_penalty=1.1,logit_bias=5:-2.0'
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from lockstep.errors import InputError, message

MAX_BIAS = 1e6
"""Larger ones would leave nothing of the logits, and could overflow fp32 after the division by the temperature."""

_LONG = 64  # characters of a list in `adjustments`; beyond, its digest stands there


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to draw tokens; names as in vLLM. `temperature == 0` is greedy; `top_k == 0` keeps every token.

    Logits are changed in this order: `repetition_penalty` (of tokens in prompt or completion: a positive logit is
    divided by it, another multiplied), `frequency_penalty` times the count and `presence_penalty` once (subtracted, of
    tokens in the completion), `logit_bias`, `bad_words`, temperature, `min_p`, `top_k`, `top_p`.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    max_tokens: int = 16
    n: int = 1
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, added to its logit), ids ascending
    bad_words: tuple[tuple[int, ...], ...] = ()  # sequences of token ids that are never completed
    prompt_logprobs: bool = False

    def __post_init__(self) -> None:
        rules = {
            "temperature": (0.0 <= self.temperature < float("inf"), "a finite number >= 0"),
            "top_k": (self.top_k >= 0, "an integer >= 0 (0 keeps all)"),
            "top_p": (0.0 < self.top_p <= 1.0, "a number in (0, 1]"),
            "min_p": (0.0 <= self.min_p <= 1.0, "a number in [0, 1]"),
            "max_tokens": (self.max_tokens >= 1, "an integer >= 1"),
            "n": (self.n >= 1, "an integer >= 1"),
            "seed": (self.seed >= 0, "an integer >= 0"),
            "stop": (not isinstance(self.stop, str), "a tuple of strings"),
            "presence_penalty": (-2.0 <= self.presence_penalty <= 2.0, "a number in [-2, 2]"),
            "frequency_penalty": (-2.0 <= self.frequency_penalty <= 2.0, "a number in [-2, 2]"),
            "repetition_penalty": (0.0 < self.repetition_penalty <= 2.0, "a number in (0, 2]"),
            "logit_bias": (
                _ascending([i for i, _ in self.logit_bias]) and all(abs(b) <= MAX_BIAS for _, b in self.logit_bias),
                f"(token id, number in [-{MAX_BIAS:g}, {MAX_BIAS:g}]) pairs, ids ascending, each once",
            ),
            "bad_words": (
                all(len(word) > 0 and min(word) >= 0 for word in self.bad_words),
                "sequences of at least one token id",
            ),
        }
        for name, (holds, expected) in rules.items():
            if not holds:
                got = getattr(self, name)
                raise InputError(
                    message(
                        f"sampling ({name})", "out of range", got=got, expected=expected, do=f"Change sampling.{name}"
                    )
                )

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def truncates(self) -> bool:
        """Whether the support is smaller than the vocabulary."""
        return not self.greedy and (self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0)

    @property
    def penalizes(self) -> bool:
        """Whether tokens that have occurred are made less or more likely."""
        return (self.presence_penalty, self.frequency_penalty, self.repetition_penalty) != (0.0, 0.0, 1.0)

    @property
    def adjusts(self) -> bool:
        """Whether logits are changed before the temperature: penalties, bias, bad words."""
        return self.penalizes or bool(self.logit_bias) or bool(self.bad_words)

    @property
    def adjustments(self) -> str:
        """What is done to the logits before the temperature, exactly; equal texts are equal adjustments. Empty: none.

        A long list is given by its length and SHA-256 (16 hex digits).
        """
        if not self.adjusts:
            return ""
        bias = (f"{int(i)}:{float(b)!r}" for i, b in self.logit_bias)
        words = (".".join(str(int(i)) for i in word) for word in self.bad_words)
        stated = {
            "repetition_penalty": "" if self.repetition_penalty == 1.0 else repr(float(self.repetition_penalty)),
            "frequency_penalty": "" if self.frequency_penalty == 0.0 else repr(float(self.frequency_penalty)),
            "presence_penalty": "" if self.presence_penalty == 0.0 else repr(float(self.presence_penalty)),
            "logit_bias": _short(list(bias)),
            "bad_words": _short(sorted(set(words))),
        }
        return ",".join(f"{name}={value}" for name, value in stated.items() if value)


def _ascending(ids: list[int]) -> bool:
    return all(a < b for a, b in zip([-1, *ids], ids, strict=False))


def _short(items: list[str]) -> str:
    text = "|".join(items)
    if len(text) <= _LONG:
        return text
    return f"{len(items)}#{hashlib.sha256(text.encode()).hexdigest()[:16]}"
