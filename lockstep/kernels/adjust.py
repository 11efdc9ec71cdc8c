"""Logits as penalties, biases and bad words change them, before the temperature. Sampler and trainer both call this.

In: raw logits fp32 [N, V] and what every row comes after. Out: adjusted logits, and the way back of their slope. Only
entries that change are touched, each by arithmetic of its own: a row's bits do not depend on its neighbours.

    seen in prompt or completion   logit > 0: logit / repetition_penalty, else logit * repetition_penalty
    count > 0 in the completion    - (frequency_penalty * count + presence_penalty)
    biased                         + bias
    would complete a bad word      minus infinity

Letters: N rows, V vocabulary; of all rows together: S seen entries, B biased ones, X banned ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lockstep.core import SamplingParams
from lockstep.errors import InputError, NumericsError, message


@dataclass(frozen=True, slots=True, eq=False)
class History:
    """What a row comes after, `prompt` int [P] and `completion` int [C] (the tokens so far), and how it is drawn."""

    params: SamplingParams
    prompt: np.ndarray
    completion: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Slopes:
    """d adjusted / d raw, where it is not 1: `factor_S` at the places `seen_S` (row * V + id), 0 at `banned_X`."""

    seen_S: Tensor
    factor_S: Tensor
    banned_X: Tensor

    def pull_back(self, slope_NV: Tensor) -> None:
        """Turn a slope along adjusted logits into one along raw logits, in place."""
        flat = slope_NV.view(-1)
        flat[self.seen_S] *= self.factor_S
        flat[self.banned_X] = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Adjustment:
    """What changes in logits [N, V]. Places are row * V + id, int64; seen ones and biased ones occur once."""

    seen_S: Tensor
    repetition_S: Tensor
    penalty_S: Tensor
    biased_B: Tensor
    bias_B: Tensor
    banned_X: Tensor

    @classmethod
    def of(
        cls, histories: Sequence[History | None], vocabulary: int, device: str | torch.device = "cpu"
    ) -> Adjustment | None:
        """That of N rows with these histories (None: a row that does not adjust); None if no row does.

        Raises `NumericsError` if a row is left without a token.
        """
        rows = [(i, h) for i, h in enumerate(histories) if h is not None and h.params.adjusts]
        if not rows:
            return None
        arrays = (*_seen(rows, vocabulary), *_biased(rows, vocabulary), _banned(rows, vocabulary))
        return cls(*(torch.from_numpy(array).to(device) for array in arrays))

    def apply(self, logits_NV: Tensor) -> tuple[Tensor, Slopes]:
        """Adjusted logits, in memory of their own, and their slopes."""
        adjusted_NV = logits_NV.clone(memory_format=torch.contiguous_format)
        flat = adjusted_NV.view(-1)
        seen_S = flat[self.seen_S]
        positive_S = seen_S > 0
        flat[self.seen_S] = (
            torch.where(positive_S, seen_S / self.repetition_S, seen_S * self.repetition_S) - self.penalty_S
        )
        flat[self.biased_B] += self.bias_B
        flat[self.banned_X] = -float("inf")
        factor_S = torch.where(positive_S, 1.0 / self.repetition_S, self.repetition_S)
        return adjusted_NV, Slopes(self.seen_S, factor_S, self.banned_X)


def adjusted(logits_NV: Tensor, histories: Sequence[History | None]) -> Tensor:
    """Adjusted logits; the very same tensor if no row adjusts. Raises as `Adjustment.of`."""
    assert len(histories) == len(logits_NV), f"{len(logits_NV)} rows, {len(histories)} histories"
    adjustment = Adjustment.of(histories, logits_NV.shape[1], logits_NV.device)
    return logits_NV if adjustment is None else adjustment.apply(logits_NV)[0]


def require_vocabulary(subject: str, params: SamplingParams, vocabulary: int) -> None:
    """Raise `InputError` unless biased and bad tokens are in the vocabulary, and bad words can never ban all of it."""
    ids = {"logit_bias": [i for i, _ in params.logit_bias], "bad_words": [i for word in params.bad_words for i in word]}
    for name, found in ids.items():
        outside = [i for i in found if not 0 <= i < vocabulary]
        if outside:
            do = "Encode the words with this model's tokenizer"
            expected = f"0 to {vocabulary - 1}"
            rule = f"ids in {name} must be in the vocabulary"
            raise InputError(message(subject, rule, got=outside[0], expected=expected, do=do))
    last = {word[-1] for word in params.bad_words}
    if len(last) >= vocabulary:
        expected, do = f"at most {vocabulary - 1}", "Ban fewer tokens"
        rule = "bad_words must leave a token that ends none of them"
        raise InputError(message(subject, rule, got=f"{len(last)} last tokens", expected=expected, do=do))


def _seen(rows: Sequence[tuple[int, History]], vocabulary: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places int64 [S] that penalties change, with what they are divided by and what is subtracted, fp32 [S]."""
    drawn, known = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    prompts: dict[int, np.ndarray] = {}  # rows of one sequence share their prompt
    size = max(row for row, _ in rows) + 1
    repetition, frequency, presence = np.ones(size, np.float32), np.zeros(size, np.float32), np.zeros(size, np.float32)
    for row, history in rows:
        params = history.params
        if not params.penalizes:
            continue
        repetition[row] = params.repetition_penalty
        frequency[row], presence[row] = params.frequency_penalty, params.presence_penalty
        drawn.append(history.completion.astype(np.int64) + row * vocabulary)
        if params.repetition_penalty != 1.0:
            if id(history.prompt) not in prompts:
                prompts[id(history.prompt)] = _distinct(history.prompt)[0]
            known.append(prompts[id(history.prompt)] + row * vocabulary)
    places, counts = _distinct(np.concatenate(drawn))
    seen, _ = _distinct(np.concatenate((places, *known)))
    owner = seen // vocabulary
    penalty = np.zeros(len(seen), np.float32)
    at = np.searchsorted(seen, places)
    penalty[at] = frequency[owner[at]] * counts.astype(np.float32) + presence[owner[at]]
    return seen, repetition[owner], penalty


def _distinct(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ascending, int64, and how often each occurs. Without the counts numpy hashes, which is ten times slower here."""
    return np.unique(values.astype(np.int64), return_counts=True)


def _biased(rows: Sequence[tuple[int, History]], vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """Places int64 [B] with what is added there, fp32 [B]."""
    places, biases = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    tables: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for row, history in rows:
        pairs = history.params.logit_bias
        if not pairs:
            continue
        if id(pairs) not in tables:
            tables[id(pairs)] = np.array([i for i, _ in pairs], np.int64), np.array([b for _, b in pairs], np.float32)
        ids, values = tables[id(pairs)]
        places.append(ids + row * vocabulary)
        biases.append(values)
    return np.concatenate(places), np.concatenate(biases)


def _banned(rows: Sequence[tuple[int, History]], vocabulary: int) -> np.ndarray:
    """Places int64 [X] of tokens that would complete a bad word."""
    places: list[int] = []
    for row, history in rows:
        words = history.params.bad_words
        if not words:
            continue
        reach = max(map(len, words)) - 1  # how far back a word may have begun
        tail = [*history.prompt[-reach:], *history.completion[-reach:]][-reach:] if reach else []
        past = tuple(int(token) for token in tail)
        banned = {word[-1] for word in words if past[len(past) - len(word) + 1 :] == tuple(word[:-1])}
        if len(banned) == vocabulary:
            who = f"token {len(history.completion)} after a prompt of {len(history.prompt)}"
            rule, do = "bad_words must leave a token", "Ban fewer tokens"
            raise NumericsError(message(who, rule, got="none left", expected="at least 1 token", do=do))
        places += [row * vocabulary + token for token in banned]
    return np.array(sorted(places), np.int64)
