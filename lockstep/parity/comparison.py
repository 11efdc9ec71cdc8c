"""Compares the trainer's logprobs with the sampler's, token by token, for equality of bits.

In: rollouts, and one `Logprobs` for each from the trainer. Out: a `ParityResult`; `ContractError` where the two mean
different things, because then there is nothing to compare.

Float32 values are compared as int32, so that nothing is rounded, and neither -0.0 nor NaN passes for something else.
What is missing, misaligned or not finite is a result of its own: it is never dropped and never replaced by a number.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lockstep.core import Logprobs, Path, Rollout
from lockstep.errors import message
from lockstep.parity.hint import Pair, hints
from lockstep.parity.result import FirstDifference, ParityResult, differs


def compare(rollouts: Sequence[Rollout], trainer: Sequence[Logprobs | None]) -> ParityResult:
    """Compare every token of `rollouts` with `trainer[i]` of `rollouts[i]`.

    Raises `ContractError` if a pair differs in mode, temperature, support, head dtype or weight version.
    """
    unpaired = _unpaired(rollouts, trainer)
    if unpaired is not None:
        return unpaired
    pairs: list[Pair] = []
    for rollout, theirs in zip(rollouts, trainer, strict=True):
        assert theirs is not None, "checked above"
        ours = rollout.sampler_logprobs
        if len(ours):
            ours.contract.require(theirs.contract)
        pairs.append((ours.values, theirs.values))
    if not sum(len(ours) for ours, _ in pairs):
        return ParityResult.refused("empty", _finding("batch", "0 tokens", "at least one token", len(rollouts)))
    return _not_finite(rollouts, pairs) or _bits(rollouts, pairs)


def _unpaired(rollouts: Sequence[Rollout], trainer: Sequence[Logprobs | None]) -> ParityResult | None:
    """The first rollout without a logprob for each of its tokens, from both sides, as float32."""
    if len(rollouts) != len(trainer):
        finding = _finding("batch", f"{len(trainer)} from the trainer", f"{len(rollouts)} series", len(rollouts))
        return ParityResult.refused("missing", finding)
    for rollout, theirs in zip(rollouts, trainer, strict=True):
        subject, count = f"rollout {rollout.id}", len(rollout.token_ids)
        if theirs is None:
            return ParityResult.refused("missing", _finding(subject, "none from the trainer", f"{count}", count))
        sides = (
            ("logprobs from the engine", rollout.sampler_logprobs.values),
            ("logprobs from the trainer", theirs.values),
        )
        for name, values in sides:
            if values.dtype != np.float32 or values.ndim != 1:
                got = f"{name} as {values.dtype} of {values.ndim} dimensions"
                return ParityResult.refused("misaligned", _finding(subject, got, "float32 of 1 dimension", count))
            if len(values) != count:
                status = "misaligned" if len(values) else "missing"
                return ParityResult.refused(status, _finding(subject, f"{len(values)} {name}", f"{count}", count))
        origin = rollout.provenance
        lengths = {len(origin.weight_version), len(origin.path), len(origin.cached)}
        if lengths != {count}:
            got = f"the provenance of {min(lengths)} tokens"
            return ParityResult.refused("misaligned", _finding(subject, got, f"{count}", count))
        versions = rollout.sampler_logprobs.contract.weight_versions
        if count and set(origin.weight_version.tolist()) != set(versions):
            got = f"tokens of weight versions {sorted(set(origin.weight_version.tolist()))}"
            return ParityResult.refused("misaligned", _finding(subject, got, f"{sorted(set(versions))}", count))
    return None


def _not_finite(rollouts: Sequence[Rollout], pairs: Sequence[Pair]) -> ParityResult | None:
    for rollout, (ours, theirs) in zip(rollouts, pairs, strict=True):
        bad = np.flatnonzero(~(np.isfinite(ours) & np.isfinite(theirs)))
        if bad.size:
            first = _first(rollout, int(bad[0]), ours, theirs)
            finding = message(
                f"logprob (rollout {rollout.id}, token {first.index})",
                "a logprob of a token that was drawn is finite",
                got=f"{first.sampler!r} ({first.sampler_bits}) from the engine, "
                f"{first.trainer!r} ({first.trainer_bits}) from the trainer",
                expected="two finite numbers",
                do=f"Look at {first.where()}",
            )
            return ParityResult.refused("not_finite", finding, first)
    return None


def _bits(rollouts: Sequence[Rollout], pairs: Sequence[Pair]) -> ParityResult:
    ours = np.concatenate([pair[0] for pair in pairs])
    theirs = np.concatenate([pair[1] for pair in pairs])
    unequal = ours.view(np.int32) != theirs.view(np.int32)
    # float64, where the difference of two float32 is never rounded to 0.
    distance = np.abs(theirs.astype(np.float64) - ours.astype(np.float64))
    num_differing = int(np.count_nonzero(unequal))
    first = None
    if num_differing:
        flat = int(np.argmax(unequal))
        ends = np.cumsum([len(pair[0]) for pair in pairs])
        which = int(np.searchsorted(ends, flat, side="right"))
        first = _first(rollouts[which], flat - int(ends[which]) + len(pairs[which][0]), *pairs[which])
    return ParityResult(
        status="differs" if first else "equal",
        num_tokens=len(ours),
        num_differing=num_differing,
        max=float(distance.max()),
        p99=float(np.quantile(distance, 0.99, method="inverted_cdf")),
        mean=float(distance.mean()),
        first=first,
        finding=differs(first, num_differing, len(ours)) if first else "",
        hints=hints(rollouts, pairs) if first else (),
    )


def _first(rollout: Rollout, index: int, ours: np.ndarray, theirs: np.ndarray) -> FirstDifference:
    path = int(rollout.provenance.path[index])
    return FirstDifference(
        rollout_id=rollout.id,
        index=index,
        token_id=int(rollout.token_ids[index]),
        position=len(rollout.prompt_ids) + index,
        sampler=float(ours[index]),
        trainer=float(theirs[index]),
        sampler_bits=f"0x{int(ours[index : index + 1].view(np.uint32)[0]):08x}",
        trainer_bits=f"0x{int(theirs[index : index + 1].view(np.uint32)[0]):08x}",
        weight_version=int(rollout.provenance.weight_version[index]),
        path=Path.label(path),
        cached=bool(rollout.provenance.cached[index]),
    )


def _finding(subject: str, got: str, expected: str, count: int) -> str:
    return message(
        f"logprobs ({subject})",
        "every token that was drawn has a logprob from both sides",
        got=got,
        expected=expected,
        do="Score the batch again" if count else "Draw rollouts before taking a step",
    )
