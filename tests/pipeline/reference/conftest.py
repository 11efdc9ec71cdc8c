"""What the tests of the reference share: samples of a real run with weights in flight, and a model written out plainly.

`Plain` is the same network in float64, one row after the other, by the textbook: nothing of kernels/ is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lockstep.core import Rollout, SamplingParams
from lockstep.harness.laboratory import Laboratory
from lockstep.harness.networks import Networks
from lockstep.harness.setup import Setup
from lockstep.models.architecture import Architecture
from lockstep.parity.hypothesis import AS_STATED, Hypothesis
from lockstep.parity.observation import Sample
from lockstep.pipeline.reference import NativeReference

Params = Mapping[str, Tensor]


def as_it_is(x: Tensor) -> Tensor:
    return x


@dataclass
class Plain:
    """A walk along a sequence. `keys` and `values` hold what every row has left, a list a layer.

    `angles`, `norm` and `stored` round cosines and sines, normed rows, keys and values. `before`: the rows that are
    there already belong to another sequence.
    """

    arch: Architecture
    angles: Callable[[Tensor], Tensor] = as_it_is
    norm: Callable[[Tensor, Tensor, float], Tensor] | None = None
    stored: Callable[[Tensor], Tensor] = as_it_is
    before: bool = False
    keys: list[list[Tensor]] = field(default_factory=list)
    values: list[list[Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.keys = [[] for _ in range(self.arch.num_layers)]
        self.values = [[] for _ in range(self.arch.num_layers)]

    def row(self, params: Params, token: int, position: int) -> Tensor:
        """The final hidden state of one more row, float64 [E]."""
        arch = self.arch
        H, K, D = arch.num_heads, arch.num_kv_heads, arch.head_dim
        w = {name: tensor.double() for name, tensor in params.items()}
        x = w["embedding"][token]
        for i in range(arch.num_layers):
            at = f"layers.{i}."
            joint = w[at + "qkv"] @ self.normed(x, w[at + "input_norm"])
            joint = (joint + w[at + "qkv_bias"] if at + "qkv_bias" in w else joint).view(-1, D)
            q, k, v = joint[:H], joint[H : H + K], joint[H + K :]
            if at + "q_norm" in w:
                q, k = self.normed(q, w[at + "q_norm"]), self.normed(k, w[at + "k_norm"])
            self.keys[i].append(self.stored(self.turned(k, position)))
            self.values[i].append(self.stored(v))
            k, v = (torch.stack(x).repeat_interleave(H // K, 1) for x in (self.keys[i], self.values[i]))
            share = torch.softmax(torch.einsum("hd,thd->ht", self.turned(q, position), k) / D**0.5, -1)
            x = x + w[at + "output"] @ torch.einsum("ht,thd->hd", share, v).flatten()
            gate, up = (w[at + "gate_up"] @ self.normed(x, w[at + "post_norm"])).chunk(2)
            x = x + w[at + "down"] @ (gate * torch.sigmoid(gate) * up)
        return self.normed(x, w["norm"])

    def normed(self, x: Tensor, gain: Tensor) -> Tensor:
        if self.norm is not None:
            return self.norm(x, gain, self.arch.norm_eps)
        return x / (x.square().mean(-1, keepdim=True) + self.arch.norm_eps).sqrt() * gain

    def turned(self, x: Tensor, position: int) -> Tensor:
        half = self.arch.head_dim // 2
        angle = position * self.arch.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
        cos, sin = self.angles(angle.cos()), self.angles(angle.sin())
        low, high = x[..., :half], x[..., half:]
        return torch.cat((low * cos - high * sin, high * cos + low * sin), -1)


@dataclass(frozen=True)
class Ran:
    """The second step of a laboratory whose weights changed in flight: what was drawn, and by which weights."""

    lab: Laboratory
    samples: Sequence[Sample]
    rollouts: Sequence[Rollout]

    @property
    def arch(self) -> Architecture:
        return self.lab.network.model.arch

    def reference(self, **settings: Any) -> NativeReference:
        return NativeReference(self.arch, self.lab.history, dtype=self.lab.setup.dtype, **settings)

    def score(self, hypothesis: Hypothesis = AS_STATED, samples: Sequence[Sample] | None = None) -> list[np.ndarray]:
        return self.reference().score(self.samples if samples is None else samples, hypothesis)

    def weights_of(self, sample: Sample) -> Callable[[int], Params]:
        """Which parameters ran each position, as the engine says."""
        newest = int(np.asarray(sample.versions).max())

        def at(position: int) -> Params:
            found = [span.version for span in sample.spans if span.start <= position < span.end]
            return self.lab.history[found[-1] if found else newest]

        return at

    def hidden(
        self,
        sample: Sample,
        weights: Callable[[int], Params] | None = None,
        place: Callable[[int], int] = lambda position: position,
        plain: Plain | None = None,
    ) -> Tensor:
        """float64 [T, E]: the rows that decide the tokens, of weights and places by position.

        `plain` may hold keys already: of as many first positions, or of what stands before (then its `before` says so).
        """
        walk, weights = plain or Plain(self.arch), weights or self.weights_of(sample)
        ids = [*sample.prompt_ids.tolist(), *sample.token_ids.tolist()][:-1]
        there = len(walk.keys[0]) if not walk.before else 0
        rows = [walk.row(weights(p), token, place(p)) for p, token in enumerate(ids) if p >= there]
        return torch.stack(rows[len(sample.prompt_ids) - 1 - there :])

    def logits(self, sample: Sample, weights: Callable[[int], Params] | None = None, **rest: Any) -> Tensor:
        """float64 [T, V]: plain logits of every token; the rest as in `hidden`."""
        weights = weights or self.weights_of(sample)
        name, first = "embedding" if self.arch.tied else "head", len(sample.prompt_ids) - 1
        rows = self.hidden(sample, weights, **rest)
        return torch.stack([weights(first + t)[name].double() @ row for t, row in enumerate(rows)])


def _chosen(logits_TV: Tensor, sample: Sample) -> np.ndarray:
    ids = torch.from_numpy(sample.token_ids.astype(np.int64))
    return torch.log_softmax(logits_TV, -1)[torch.arange(len(ids)), ids].numpy()


@pytest.fixture(scope="session")
def chosen() -> Callable[[Tensor, Sample], np.ndarray]:
    """float64 [T]: log softmax of given logits at a sample's tokens."""
    return _chosen


@pytest.fixture(scope="session")
def plain() -> type[Plain]:
    return Plain


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Ran]]:
    """Runs by their setup, each run once; by default plain fp32 sampling at T = 0.7 with new weights in flight."""
    networks = Networks(tmp_path_factory.mktemp("networks"))
    params = SamplingParams(temperature=0.7, max_tokens=6, n=2, ignore_eos=True)
    base = Setup(params=params, prompts=3, prefix=18, tail=6, in_flight=True, lr=1e-2)
    known: dict[str, Ran] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run(**fields: Any) -> Ran:
        asked = fields.pop("params", {})
        key = repr((asked, fields))
        if key not in known:
            setup = replace(base, params=replace(params, **asked), **fields)
            with Laboratory(networks, setup) as lab:
                lab.observe()
                lab.advance()
                samples = lab.observe().samples
            known[key] = Ran(lab, samples, lab.drawn)
        return known[key]

    yield run
    torch.set_num_threads(threads)
