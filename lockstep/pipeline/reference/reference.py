"""`NativeReference`: scores tokens again, with one factor flipped.

    sample + hypothesis -> course (which weights run which rows) -> hidden rows that decide tokens -> reading
                               |  only weights and old keys: train.SpanScorer, bit for bit as engine and trainer
                               |  layout, keys, rounding: states.py, the same kernels around the flipped part

In: parameters by version. Out: float32 logprobs.

Letters: T tokens of a completion, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lockstep.core import Contract, Logprobs, Provenance, Rollout, SamplingParams
from lockstep.errors import message
from lockstep.kernels.linear import Packed, pack
from lockstep.models.architecture import Architecture
from lockstep.models.decoder import Parameters
from lockstep.models.prepared import head_weight
from lockstep.parity.hypothesis import AS_STATED, Hypothesis, Reading, Rounding
from lockstep.parity.observation import Sample
from lockstep.parity.side import CannotAsk
from lockstep.pipeline.reference.course import Course, Held, course_of
from lockstep.pipeline.reference.reading import read
from lockstep.pipeline.reference.states import decided_states, int8
from lockstep.train.forward import Forward
from lockstep.train.replay import SpanScorer

Dtype = Literal["bfloat16", "float32"]
_PLAIN = SamplingParams()

_Ran = tuple[list[Sample], dict[int, Parameters], list[list[tuple[int, Tensor, range]]]]
"""Samples as they were asked for, parameters by private number, and for each sample its parts (see `_states`)."""


class NativeReference:
    """Implements `parity.side.Reference`. `versions` may be a mapping that grows while it is used; nobody changes what
    it holds. `named`: weights under a word, of any dtype.
    """

    def __init__(
        self,
        arch: Architecture,
        versions: Mapping[int, Parameters],
        named: Mapping[str, Parameters] | None = None,
        dtype: Dtype = "bfloat16",
        head_dtype: Literal["float32", "model"] = "float32",
        max_tokens: int = 2048,
    ) -> None:
        self._arch, self._versions, self._named = arch, versions, named or {}
        self._dtype: Dtype = dtype
        self._head_dtype: Literal["float32", "model"] = head_dtype
        self._max_tokens = max_tokens
        self._forwards: dict[str, Forward] = {}
        self._last: tuple[tuple[Sample, ...], tuple[Hypothesis, tuple[int, ...]], _Ran] | None = None

    @property
    def versions(self) -> tuple[int, ...]:
        return tuple(sorted(self._versions))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._named)

    @property
    def parameters(self) -> tuple[str, ...]:
        own = tuple(name for name in self._arch.parameter_shapes() if name != "head")
        return (*own, "head")

    def score(self, samples: Sequence[Sample], hypothesis: Hypothesis = AS_STATED) -> list[np.ndarray]:
        """See `parity.side.Reference.score`. Raises `InputError` for tokens that the model does not have."""
        if not samples:
            return []
        asked, held, states = self._run(samples, hypothesis)
        series = []
        for sample, parts in zip(asked, states, strict=True):
            pieces = [
                read(hidden_TE, self._head(number, held, hypothesis), sample, tokens, hypothesis.reading)
                for number, hidden_TE, tokens in parts
            ]
            series.append(np.concatenate(pieces))
        return series

    def _run(self, samples: Sequence[Sample], hypothesis: Hypothesis) -> _Ran:
        """The forward; the last one is kept, so that many readings of the same rows cost only their heads.

        Not that of weights under a name: a trainer may change its masters between two calls.
        """
        rows = replace(hypothesis, reading=Reading()), self.versions
        if self._last is not None and self._last[1] == rows and _same(self._last[0], samples):
            return self._last[2]
        asked = [self._prompted(sample, hypothesis) for sample in samples]
        courses = [course_of(sample, hypothesis, self.versions) for sample in asked]
        held = self._held(courses)
        ran = asked, held, self._states(asked, courses, held, hypothesis)
        self._last = None if hypothesis.weights.name else (tuple(samples), rows, ran)
        return ran

    def calibration(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """float64 [T] each: how far two honest computations of the same logprobs are apart here, in bf16 and in fp32.

        It is what rounding alone does to this model on these tokens, and so the floor under any other engine.
        """
        wide = NativeReference(
            self._arch,
            {number: {n: p.float() for n, p in self._versions[number].items()} for number in self._used(samples)},
            None, "float32", "float32", self._max_tokens,
        )  # fmt: skip
        other = self if self._dtype == "bfloat16" else self._narrow(samples)
        pairs = zip(other.score(samples), wide.score(samples), strict=True)
        return [narrow.astype(np.float64) - exact for narrow, exact in pairs]

    def _narrow(self, samples: Sequence[Sample]) -> NativeReference:
        versions = {
            number: {name: tensor.bfloat16() for name, tensor in self._versions[number].items()}
            for number in self._used(samples)
        }
        return NativeReference(self._arch, versions, None, "bfloat16", "float32", self._max_tokens)

    def _used(self, samples: Sequence[Sample]) -> set[int]:
        courses = [course_of(sample, AS_STATED, self.versions) for sample in samples]
        return {key.version for course in courses for key in course.held.values()}

    def _prompted(self, sample: Sample, hypothesis: Hypothesis) -> Sample:
        ids = hypothesis.prompts.get(sample.id)
        return sample if ids is None else replace(sample, prompt_ids=np.asarray(ids, np.int32), spans=())

    def _held(self, courses: Sequence[Course]) -> dict[int, Parameters]:
        """The parameters of every private number that the courses name."""
        keys = {number: key for course in courses for number, key in course.held.items()}
        return {number: self._parameters(key) for number, key in keys.items()}

    def _parameters(self, key: Held) -> Parameters:
        if key.name:
            return self._named_as(key.name)
        params = self._version(key.version)
        if key.stale:
            assert key.older is not None, "what is stale is of some version"
            older = self._version(key.older)
            params = {name: older[name] if name in key.stale else tensor for name, tensor in params.items()}
        if key.int8:
            params = {name: int8(tensor) if tensor.dim() == 2 else tensor for name, tensor in params.items()}
        return params

    def _version(self, number: int) -> Parameters:
        if number not in self._versions:
            raise CannotAsk(
                message(f"reference (version {number})", "its weights must be held", got="none",
                        expected=f"one of {', '.join(map(str, self.versions)) or 'none'}", do="Keep more versions")
            )  # fmt: skip
        return self._versions[number]

    def _named_as(self, name: str) -> Parameters:
        if name not in self._named:
            do = "Give the reference the trainer's weights under that name"
            raise CannotAsk(
                message(f"reference ({name})", "these weights must be held", got="none",
                        expected=", ".join(self._named) or "no name", do=do)
            )  # fmt: skip
        return self._named[name]

    def _states(
        self, samples: Sequence[Sample], courses: Sequence[Course], held: Mapping[int, Parameters], h: Hypothesis
    ) -> list[list[tuple[int, Tensor, range]]]:
        """For each sample its parts in order of the tokens: (private number, hidden rows [n, E], tokens)."""
        forward = self._forward(held)
        with torch.no_grad():
            if needs_own_states(h):
                return decided_states(forward, samples, courses, held, h)
            found: list[list[tuple[int, Tensor, range]]] = [[] for _ in samples]
            rollouts = [_rollout(s, course, forward) for s, course in zip(samples, courses, strict=True)]
            for decided in SpanScorer(forward, held, self._max_tokens).decided(rollouts):
                for i, (index, tokens) in enumerate(decided.parts):
                    found[index].append((decided.version, decided.hidden_NE[decided.rows([i])], tokens))
        return [sorted(parts, key=lambda part: part[2].start) for parts in found]

    def _forward(self, held: Mapping[int, Parameters]) -> Forward:
        dtype = str(next(iter(held.values()))["embedding"].dtype).removeprefix("torch.")
        if dtype not in self._forwards:
            assert dtype in ("bfloat16", "float32"), f"weights of a model are bfloat16 or float32, got {dtype}"
            self._forwards[dtype] = Forward(self._arch, dtype, self._head_dtype)
        return self._forwards[dtype]

    def _head(self, number: int, held: Mapping[int, Parameters], h: Hypothesis) -> Packed:
        """What the hidden rows of a private number are multiplied by."""
        params = held[number]
        weights = h.weights
        if (
            "head" in weights.stale
            and self._arch.tied
            and weights.older is not None
            and (not weights.rows or number % 2 == 0)
        ):
            params = self._version(weights.older)
        if not h.rounding.head:
            return head_weight(params, self._arch, self._head_dtype)
        plain = params["embedding" if self._arch.tied else "head"]
        return pack(plain.to(getattr(torch, h.rounding.head)), wide=False)


def _same(some: Sequence[Sample], others: Sequence[Sample]) -> bool:
    return len(some) == len(others) and all(a is b for a, b in zip(some, others, strict=True))


def needs_own_states(h: Hypothesis) -> bool:
    """Whether more is flipped than weights and versions of keys."""
    plain = Rounding(head=h.rounding.head, weights=h.rounding.weights)
    return h.layout != AS_STATED.layout or bool(h.keys.instead) or h.rounding != plain


def _rollout(sample: Sample, course: Course, forward: Forward) -> Rollout:
    """The sample as a rollout that was run along `course`; how it was drawn is the business of the reading."""
    count = len(sample.token_ids)
    versions = course.decided(len(sample.prompt_ids), count)
    numbers = tuple(int(number) for number in np.unique(versions))
    return Rollout(
        id=sample.id,
        task_id="",
        prompt_ids=np.asarray(sample.prompt_ids, np.int32),
        token_ids=np.asarray(sample.token_ids, np.int32),
        text="",
        finish_reason="length",
        params=_PLAIN,
        sampler_logprobs=Logprobs(np.zeros(count, np.float32), Contract.of(_PLAIN, forward.head_dtype, numbers)),
        provenance=Provenance(versions, np.zeros(count, np.uint8), np.zeros(count, bool), course.spans),
    )
