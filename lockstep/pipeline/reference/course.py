"""Which weights run which rows of a sample, under a hypothesis.

In: a sample, a hypothesis, the versions that are held. Out: `Course`: spans over private numbers, and what these mean.

Private numbers rise with time, as spans must: version v is 2v + 1, and a mixture of v with something older is 2v.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lockstep.core import Span
from lockstep.errors import message
from lockstep.parity.hypothesis import Hypothesis
from lockstep.parity.observation import Sample
from lockstep.parity.side import CannotAsk


@dataclass(frozen=True, slots=True)
class Held:
    """Weights by what they are made of: a version, some tensors of an older one, rounded, or a name."""

    version: int
    stale: frozenset[str] = frozenset()
    older: int | None = None
    int8: bool = False
    name: str = ""

    @property
    def number(self) -> int:
        """The private number: just before the version that it is a mixture of."""
        return 2 * self.version + (self == Held(self.version))


@dataclass(frozen=True, slots=True)
class Course:
    """`spans` as in `core.Provenance`, over private numbers; `held` says what they are."""

    spans: tuple[Span, ...]
    held: Mapping[int, Held] = field(default_factory=dict)

    def decided(self, num_prompt: int, count: int) -> np.ndarray:
        """int32 [T]: the number that decided each token: that of the first span that ran its row."""
        rows = np.arange(num_prompt - 1, num_prompt - 1 + count)
        numbers = np.full(count, -1, np.int32)
        for span in self.spans:
            numbers[(rows >= span.start) & (rows < span.end) & (numbers < 0)] = span.version
        assert (numbers >= 0).all(), "a course runs every row that decides"
        return numbers

    @property
    def layout(self) -> tuple[Span, ...]:
        """The last walk from position 0 on: whose keys are there in the end."""
        begins = [i for i, span in enumerate(self.spans) if span.start == 0]
        return self.spans[begins[-1] :]


def course_of(sample: Sample, hypothesis: Hypothesis, versions: Sequence[int]) -> Course:
    """How `sample` was run. Raises `CannotAsk` if no weights are held."""
    if not versions and not hypothesis.weights.name:
        expected, do = "at least one version", "Give it the weights that the trainer published"
        raise CannotAsk(message("reference", "it holds weights", got="none", expected=expected, do=do))
    end = len(sample.prompt_ids) + len(sample.token_ids) - 1
    weights, keys, int8 = hypothesis.weights, hypothesis.keys, bool(hypothesis.rounding.weights)
    if weights.name:
        return _course([(0, end, Held(0, name=weights.name))])
    newest = _newest(sample, versions)
    if keys.older is not None and sample.id in keys.until:
        until = min(keys.until[sample.id], end)
        if keys.older >= newest:
            do = "Assume keys of a version before the one that drew the sample"
            rule = "keys are older than the weights that read them"
            subject = f"hypothesis (sample {sample.id})"
            raise CannotAsk(message(subject, rule, got=keys.older, expected=f"less than {newest}", do=do))
        return _course([(0, until, Held(keys.older)), (until, end, Held(newest, int8=int8))])
    mixture = Held(newest if weights.version is None else weights.version, weights.stale, weights.older, int8)
    if weights.rows:
        stated = list(_in_flight(sample, newest, end))
        return _course(_cut(stated, weights.rows.get(sample.id), mixture))
    if weights.version is not None or weights.stale:
        return _course([(0, end, mixture)])
    return _course([(a, b, Held(held.version, int8=int8)) for a, b, held in _stated(sample, newest, end)])


def _newest(sample: Sample, versions: Sequence[int]) -> int:
    """The newest weights that had to do with a sample; the newest of all if it does not say."""
    if sample.spans:
        return sample.spans[-1].version
    if sample.versions is not None and len(sample.versions):
        return int(sample.versions.max())
    return max(versions)


def _stated(sample: Sample, newest: int, end: int) -> Iterator[tuple[int, int, Held]]:
    """As the engine says; where it names versions of tokens only, each version has written its own keys."""
    if sample.spans:
        yield from ((span.start, min(span.end, end), Held(span.version)) for span in sample.spans if span.start < end)
        return
    said = sample.versions
    if said is None or len(said) != len(sample.token_ids):
        yield 0, end, Held(newest)
        return
    first = len(sample.prompt_ids) - 1
    for number in sorted(set(said.tolist())):
        last = int(np.flatnonzero(said == number)[-1])
        yield 0, first + last + 1, Held(int(number))


def _in_flight(sample: Sample, newest: int, end: int) -> Iterator[tuple[int, int, Held]]:
    """As the engine says; where it names versions of tokens only, each goes on over the keys of those before it."""
    said = sample.versions
    if sample.spans or said is None or len(said) != len(sample.token_ids):
        yield from _stated(sample, newest, end)
        return
    first = len(sample.prompt_ids) - 1
    changes = [0, *(np.flatnonzero(np.diff(said)) + 1).tolist(), len(said)]
    for start, stop in itertools.pairwise(changes):
        yield (first + start if start else 0), min(first + stop, end), Held(int(said[start]))


def _cut(
    stated: Sequence[tuple[int, int, Held]], rows: tuple[int, int] | None, mixture: Held
) -> list[tuple[int, int, Held]]:
    """Put the mixture in the place of some rows; those after them are at least as new."""
    if rows is None:
        return list(stated)
    start, end = rows
    pieces: list[tuple[int, int, Held]] = []
    for a, b, held in stated:
        parts = ((a, min(b, start), held), (max(a, start), min(b, end), mixture), (max(a, end), b, held))
        pieces += [part for part in parts if part[0] < part[1]]
    return pieces


def _course(pieces: Sequence[tuple[int, int, Held]]) -> Course:
    """Spans of the pieces that are not empty; neighbours of one number become one.

    Raises `CannotAsk` for weights that would become older on the way.
    """
    spans: list[Span] = []
    held: dict[int, Held] = {}
    for start, end, key in pieces:
        if start >= end:
            continue
        held[key.number] = key
        last = spans[-1] if spans else None
        if last is not None and start and key.number < last.version:
            rule, do = "weights only become newer along a sample", "Assume them where the version changes"
            got = f"version {key.version} after {held[last.version].version} at position {start}"
            raise CannotAsk(message("hypothesis", rule, got=got, expected="a version that is not older", do=do))
        if last is not None and last.version == key.number and last.end == start:
            spans[-1] = Span(last.start, end, key.number)
        else:
            spans.append(Span(start, end, key.number))
    return Course(tuple(spans), held)
