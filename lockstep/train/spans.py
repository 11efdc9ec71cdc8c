"""How a sequence was run while the weights changed: checks the spans of a rollout and turns them into passes.

In: a rollout. Out: `Pass`es, or `InputError` for spans that cannot be true. No tensor.

    spans     (0, 6, v1) (6, 9, v2)  |  (0, 11, v2)          prompt of 4, completion of 8: rows 3 .. 10 decide
    passes    rows 0..5 at v1, then rows 6..8 at v2; tokens 0..5 were decided on the way
              rows 0..10 at v2, over new keys; its rows 9 and 10 decided tokens 6 and 7, the others nothing again

A row decides a token once, when it is first run: what is run again was drawn already. So a token belongs to the first
span that runs its row, even where a later span of the same version runs it over other keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lockstep.core import Rollout, Span
from lockstep.errors import InputError, message


@dataclass(frozen=True, slots=True)
class Pass:
    """One walk from position 0 over keys of its own. `spans` abut, versions rise; `tokens` were decided on it."""

    spans: tuple[Span, ...]
    tokens: range

    @property
    def end(self) -> int:
        """Positions 0 .. end - 1 are run."""
        return self.spans[-1].end


def passes(rollout: Rollout) -> tuple[Pass, ...]:
    """The passes that decided a token, in order of time; together they decide every token once.

    Raises `InputError` for spans that cannot be true: see `check_spans`.
    """
    check_spans(rollout)
    first = len(rollout.prompt_ids) - 1
    found, decided = [], 0
    for walk in _walks(_recorded(rollout)):
        reached = max(walk[-1].end - first, 0)
        if reached > decided:
            found.append(Pass(tuple(walk), range(decided, reached)))
            decided = reached
    return tuple(found)


def _walks(spans: tuple[Span, ...]) -> list[list[Span]]:
    """Spans cut where everything starts anew; those that go on at the same version are one."""
    walks: list[list[Span]] = []
    for span in spans:
        if span.start == 0:
            walks.append([span])
        elif walks[-1][-1].version == span.version:
            walks[-1][-1] = Span(walks[-1][-1].start, span.end, span.version)
        else:
            walks[-1].append(span)
    return walks


def check_spans(rollout: Rollout) -> None:
    """Raise `InputError` unless the spans run every row that decided a token, at the version that the token carries.

    Each span starts where the one before it ended, or at 0; versions never fall; no row past the last that decides is
    run. The weight versions of the contract must be those of the tokens.
    """
    _check_versions(rollout)
    needed = len(rollout.prompt_ids) + len(rollout.token_ids) - 1
    before: Span | None = None
    for span in _recorded(rollout):
        seen = f"{_words(span)} after {_words(before) if before else 'nothing'}"
        if not 0 <= span.start < span.end <= needed:
            raise _refused(rollout, "a span runs positions of the sequence", _words(span), f"some of 0 to {needed - 1}")
        if span.start not in (0, before.end if before else 0):
            expected = f"a start at 0{f' or {before.end}' if before else ''}"
            raise _refused(rollout, "a span goes on where the last one ended, or starts anew", seen, expected)
        least = before.version if before else 0
        if span.version < least:
            raise _refused(rollout, "versions never fall", seen, f"a version of at least {least}")
        before = span
    _check_decided(rollout, needed)


def _check_versions(rollout: Rollout) -> None:
    """Provenance of every token, and the same versions in the contract."""
    versions, count = rollout.provenance.weight_version, len(rollout.token_ids)
    if not count or not len(rollout.prompt_ids) or len(versions) != count:
        got = f"{len(rollout.prompt_ids)} prompt ids, {count} tokens and {len(versions)} weight versions"
        raise _refused(rollout, "every token has a weight version", got, "at least 1 of each, a version for each token")
    seen = tuple(np.unique(versions).tolist())
    contract = rollout.sampler_logprobs.contract.weight_versions
    if seen[0] < 0 or seen != contract:
        rule = "the contract lists the versions of the tokens"
        raise _refused(rollout, rule, f"tokens of {seen}", f"those of the contract, {contract}")
    if not rollout.provenance.spans and len(seen) > 1:
        rule = "tokens of several weight versions need spans"
        raise _refused(rollout, rule, f"versions {seen} and no span", "spans, or one version")


def _check_decided(rollout: Rollout, needed: int) -> None:
    """Every row that decides is run, and first at the version of its token."""
    first = len(rollout.prompt_ids) - 1
    versions = rollout.provenance.weight_version
    reach = 0
    for span in _recorded(rollout):
        fresh = range(max(reach, first) - first, max(span.end, first) - first)
        wrong = [token for token in fresh if versions[token] != span.version]
        if wrong:
            token = wrong[0]
            got = f"token {token} of version {versions[token]}, first run in {_words(span)}"
            raise _refused(rollout, "a token carries the version that decided it", got, f"version {span.version}")
        reach = max(reach, span.end)
    if reach != needed:
        rule = "the spans run every row that decided a token"
        raise _refused(rollout, rule, f"{reach} positions", f"{needed}")


def _recorded(rollout: Rollout) -> tuple[Span, ...]:
    """The spans, spelled out where the whole sequence was run at one version."""
    origin = rollout.provenance
    needed = len(rollout.prompt_ids) + len(rollout.token_ids) - 1
    return origin.spans or (Span(0, needed, int(origin.weight_version[0])),)


def _words(span: Span) -> str:
    return f"positions {span.start} to {span.end - 1} at version {span.version}"


def _refused(rollout: Rollout, rule: str, got: str, expected: str) -> InputError:
    do = "Take the provenance as the engine recorded it, or leave the rollout out"
    return InputError(message(f"rollout ({rollout.id})", rule, got=got, expected=expected, do=do))
