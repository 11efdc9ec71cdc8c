"""What the columns of a run allow to be asked, and what not, with the reason.

In: a `Coverage`, and what is known of the format. Out: one `Permission` for each kind of probe. Nothing is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lockstep.adapters.foreign.coverage import Coverage

Answer = Literal["yes", "partly", "given a reference", "no"]
"""``given a reference``: to somebody who has the weights and can score the tokens again."""

KINDS = ("statements", "structure", "mismatch", "semantics", "weights", "cache", "path", "numerics", "objective")
"""Kinds of probes: what is said, what was recorded, the difference of the two sides, then the layers of causes."""

NEEDED = {"token_ids": "token ids", "sampler": "sampler logprobs", "trainer": "trainer logprobs"}

RECOMPUTED = ("ratio_new_old", "kl_new_old", "mean_abs_log_ratio_new_old")
"""Metrics that tokens give again (parity/probes/objective.py)."""


@dataclass(frozen=True, slots=True)
class Permission:
    """An answer and a phrase that says why."""

    answer: Answer
    why: str

    def __str__(self) -> str:
        return f"{self.answer} - {self.why}"


def permissions(coverage: Coverage, notes: Mapping[str, str]) -> dict[str, Permission]:
    """By kind, in the order of `KINDS`. A format's note on a kind is added to the reason."""
    judges = {
        "statements": _statements,
        "structure": _structure,
        "mismatch": _mismatch,
        "semantics": _semantics,
        "weights": _weights,
        "cache": _cache,
        "path": _path,
        "numerics": _numerics,
        "objective": _objective,
    }
    found = {}
    for kind in KINDS:
        permission = judges[kind](coverage) if coverage.samples else Permission("no", "there are no samples")
        note = notes.get(kind)
        found[kind] = Permission(permission.answer, f"{permission.why}; {note}") if note else permission
    return found


def _statements(coverage: Coverage) -> Permission:
    said = {side: names for side, names in coverage.stated.items() if names}
    if not said:
        return Permission("no", "neither side says its settings or the label of its weights here")
    words = "; ".join(f"the {side} says {', '.join(sorted(names))}" for side, names in said.items())
    return Permission("yes" if {"engine", "trainer"} <= said.keys() else "partly", words)


def _structure(coverage: Coverage) -> Permission:
    ids, series = coverage.samples_with["token_ids"], _series(coverage)
    if not ids:
        return Permission("no", "there are no token ids, only texts")
    if not series:
        return Permission("partly", f"token ids of {_of(ids, coverage)} without logprobs: repetitions can be seen")
    return Permission("yes", f"token ids of {_of(ids, coverage)}, and {' and '.join(series)}")


def _mismatch(coverage: Coverage) -> Permission:
    if coverage.comparable:
        some = "" if coverage.comparable == coverage.pairs else f" of {coverage.pairs}"
        why = f"both series of {coverage.comparable}{some} samples, {coverage.tokens_comparable} tokens"
        return Permission("yes", why)
    return _scored(coverage, f"{_lacks(coverage)}: it has to stand in for the trainer")


def _semantics(coverage: Coverage) -> Permission:
    why = "the parameters of sampling are said" if coverage.samples_with["params"] else (
        "temperature and truncation are not said, so the reading of logits can only be tried out"
    )  # fmt: skip
    return _scored(coverage, why)


def _weights(coverage: Coverage) -> Permission:
    per_token = coverage.samples_with["versions"]
    why = "the version that drew each token is said" if per_token else "no token says which weights drew it"
    return _scored(coverage, why)


def _cache(coverage: Coverage) -> Permission:
    said = coverage.samples_with["num_cached"] or coverage.samples_with["spans"]
    why = "what came from the prefix cache is said" if said else "no sample says what came from the prefix cache"
    return _scored(coverage, why)


def _path(coverage: Coverage) -> Permission:
    why = "the way through the engine is said" if coverage.samples_with["path"] else (
        "no token says its way through the engine, and experiments need the engine alive"
    )  # fmt: skip
    return _scored(coverage, why)


def _numerics(coverage: Coverage) -> Permission:
    if coverage.samples_with["again"] and coverage.comparable:
        return Permission("partly", "the trainer scored twice; roundings of the engine need a reference")
    once = "the trainer scored once" if coverage.samples_with["trainer"] else "no trainer scored"
    return _scored(coverage, f"{once}, so its own noise cannot be measured")


def _objective(coverage: Coverage) -> Permission:
    again = [name for name in RECOMPUTED if name in coverage.metrics]
    parts = [f"metrics ({', '.join(again or sorted(coverage.metrics)[:4])})"] if coverage.metrics else []
    rest = {"ratio": "weights of sequences", "reference": "the reference policy's logprobs"}
    told = [words for name, words in rest.items() if coverage.samples_with[name]]
    if not parts + told:
        return Permission("no", "no metric, sequence weight or logprob of a reference policy is there")
    words = " and ".join(parts + told)
    if not coverage.comparable:
        return Permission("partly", f"{words} only: {_lacks(coverage)}")
    return (
        Permission("yes", words) if again or told else Permission("partly", f"{words} only: no token gives them again")
    )


def _scored(coverage: Coverage, why: str) -> Permission:
    """What needs somebody who scores the tokens again under other assumptions."""
    if coverage.comparable:
        return Permission("given a reference", why)
    if coverage.pairs:
        return Permission("no", "no two series have the length of their tokens and finite numbers only")
    if coverage.tokens_with["sampler"]:
        return Permission("given a reference", why)
    return Permission("no", _lacks(coverage))


def _lacks(coverage: Coverage) -> str:
    lacking = [words for name, words in NEEDED.items() if not coverage.samples_with[name]]
    if not lacking:
        return "no sample has both the sampler's and the trainer's logprobs"
    listed = f"{', '.join(lacking[:-1])} or {lacking[-1]}" if len(lacking) > 1 else lacking[0]
    return f"there are no {listed} here"


def _series(coverage: Coverage) -> list[str]:
    names = {"sampler": "sampler logprobs", "trainer": "trainer logprobs", "reference": "the reference policy's"}
    return [words for name, words in names.items() if coverage.samples_with[name]]


def _of(count: int, coverage: Coverage) -> str:
    return f"all {count} samples" if count == coverage.samples else f"{count} of {coverage.samples} samples"
