"""The trainer: scores rollouts, proposes a step, and takes it only if a gate admitted it.

In: batches of rollouts, decisions. Out: logprobs, new published weights with their version.

    propose(batch) --Proposal (logprobs)--> parity gate --Decision--> step(proposal, decision) --> version + 1
         \\__ gradients wait inside; without an admitting decision about this very proposal they go nowhere

The forward uses the published weights, which is why its logprobs are, on-policy, the engine's.

Letters: N target tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lockstep.config import RunConfig
from lockstep.core import Contract, Decision, Logprobs, Rollout
from lockstep.errors import GateRefused, InputError, ModelError, NumericsError, message
from lockstep.kernels.allocator import keep_freed_memory
from lockstep.kernels.head import Targets
from lockstep.models import Model
from lockstep.models.checkpoint import digest
from lockstep.models.prepared import Kept
from lockstep.train import batch as batches
from lockstep.train.batch import Batch, Microbatch
from lockstep.train.corrections import require_sound
from lockstep.train.forward import Forward
from lockstep.train.ledger import Entry
from lockstep.train.losses import reference_kl
from lockstep.train.optimizer import Objective, Optimizer
from lockstep.train.policy_loss import policy_loss
from lockstep.train.prompts import score_prompts
from lockstep.train.tally import Tally
from lockstep.train.targets import targets_of
from lockstep.weight_update import Probe, WeightVersion

PROBE_TOKENS = 8


@dataclass(frozen=True, slots=True, eq=False)
class Proposal:
    """A step that waits for a decision about `id`; logprobs in order of the batch, metrics before any correction."""

    id: str
    version: WeightVersion  # of the weights it was computed with
    trainer_logprobs: tuple[Logprobs, ...]
    loss: float
    metrics: Mapping[str, float]
    ledger: tuple[Entry, ...] = ()  # what a correction did


@dataclass(frozen=True, slots=True)
class StepResult:
    """The version that the step published, and `grad_norm` (before clipping), `learning_rate`, `time/optimizer`."""

    version: WeightVersion
    metrics: Mapping[str, float]


class Trainer:
    """Weights, their optimizer, and the one way to change them. Implements `core.Scorer`.

    `params` (names of `Architecture.parameter_shapes`, dtype `config.engine.dtype`) are copied. Raises `ModelError`
    if they do not fit the model or the config, `ConfigError` for a correction that does not fit the loss.
    """

    def __init__(
        self, model: Model, params: Mapping[str, Tensor], config: RunConfig, device: str | torch.device = "cpu"
    ) -> None:
        require_sound(config)
        keep_freed_memory()
        self.model, self.config, self.device = model, config, torch.device(device)
        self.forward = Forward(model.arch, config.engine.dtype, config.engine.head_dtype)
        self.forward.require_parameters(params)
        shapes = model.arch.parameter_shapes()
        self._leaves = {name: params[name].detach().to(self.device, copy=True) for name in shapes}
        self.optimizer = Optimizer(self._leaves, config.optim)
        self.reference: dict[str, Tensor] | None = None  # what RL started from, kept if loss.beta > 0
        self._prepared, self._prepared_reference = (Kept(model.arch, config.engine.head_dtype) for _ in range(2))
        self.version = WeightVersion(0, digest(self._leaves))
        self._pending: Proposal | None = None
        self._proposals, self._changing = 0, False

    @property
    def params(self) -> dict[str, Tensor]:
        """The published weights, exactly what the forward uses. Copy them: the next step changes them in place."""
        return {name: leaf.detach() for name, leaf in self._leaves.items()}

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of the published weights, for others to keep."""
        self.require_whole()
        return {name: leaf.clone() for name, leaf in self.params.items()}

    def probe(self) -> Probe:
        """What these weights say about a few tokens: whoever installs them can prove that it computes with them."""
        self.require_whole()
        ids = np.arange(1, 1 + PROBE_TOKENS, dtype=np.int64) % self.model.arch.vocab_size
        with torch.no_grad():
            packed = batches.pack([(ids[:1], ids[1:])], [0], self.device)
            values = self.forward.logprobs(self._prepared.of(self._leaves), packed, Targets(packed.targets_N, 1.0))[0]
        return Probe(ids.astype(np.int32), values.cpu().numpy())

    @property
    def pending(self) -> Proposal | None:
        """The proposal that waits for a decision."""
        return self._pending

    def score(self, rollouts: Sequence[Rollout]) -> list[Logprobs]:
        """One `Logprobs` a rollout, under its own contract (contracts may differ) at the present version."""
        self.require_whole()
        batches.require_rollouts(rollouts)
        by_contract: dict[Contract, list[int]] = {}
        for i, rollout in enumerate(rollouts):
            self.forward.require_rollout(rollout)
            by_contract.setdefault(rollout.sampler_logprobs.contract, []).append(i)
        scored: dict[int, Logprobs] = {}
        budget = self.config.train.max_tokens_per_microbatch
        with torch.no_grad():
            for contract, members in by_contract.items():
                mine = replace(contract, weight_versions=(self.version.number,))
                for chosen in batches.plan(batches.sequences(rollouts), members, budget):
                    packed = batches.pack(batches.sequences(rollouts), chosen, self.device)
                    targets = targets_of([rollouts[i] for i in chosen], self.device)
                    values = self.forward.logprobs(self._prepared.of(self._leaves), packed, targets)[0].cpu().numpy()
                    pieces = zip(chosen, packed.split(values), strict=True)
                    scored |= {i: Logprobs(piece, mine) for i, piece in pieces}
        return [scored[i] for i in range(len(rollouts))]

    def score_prompts(self, rollouts: Sequence[Rollout]) -> list[Logprobs]:
        """What `Rollout.prompt_logprobs` would be at the present version, one a rollout."""
        self.require_whole()
        budget = self.config.train.max_tokens_per_microbatch
        return score_prompts(self.forward, self._prepared.of(self._leaves), self.version.number, rollouts, budget)

    def propose(self, batch: Batch) -> Proposal:
        """Forward and backward of the whole batch; gradients are kept for `step`.

        Raises `NumericsError` for a loss or logprob that is not finite, `InputError` for rollouts that the model cannot
        score or that are too old, `ContractError` for another head dtype. Nothing is changed then.
        """
        self._require_idle()
        for rollout in batch.rollouts:
            self.forward.require_rollout(rollout)
        lag = self._lag(batch)
        if self.config.loss.beta > 0 and self.reference is None:
            self.reference = {name: leaf.clone() for name, leaf in self.params.items()}
        self.optimizer.zero()
        tally = Tally()
        for microbatch in batch.microbatches(self.config.train.max_tokens_per_microbatch, self.device):
            self._accumulate(microbatch, tally)
        mine = replace(batch.contract, weight_versions=(self.version.number,))
        logprobs = tuple(Logprobs(values, mine) for values in tally.logprobs(batch))
        self._proposals += 1
        name = f"proposal {self._proposals} on {self.version}"
        metrics = tally.metrics(batch) | {"lag": float(lag.mean()), "lag_max": float(lag.max())}
        self._pending = Proposal(name, self.version, logprobs, tally.loss, metrics, tuple(tally.entries))
        return self._pending

    def step(self, proposal: Proposal, decision: Decision) -> StepResult:
        """Take the proposed step. Raises `GateRefused` unless `decision` admits exactly this proposal, and
        `NumericsError` for a gradient that is not finite; nothing is changed then, and the proposal still waits.
        """
        self.require_whole()
        if self._pending is None or proposal is not self._pending:
            got, do = "another or none", "Propose again"
            self._refuse(f"proposal ({proposal.id})", "it must be the one that waits", got, do)
        if not isinstance(decision, Decision) or decision.subject != proposal.id:
            got = getattr(decision, "subject", decision)
            self._refuse(
                f"proposal ({proposal.id})", "the decision must be about it", got, "Ask the gate about this one"
            )
        if not decision.admitted:
            got = f"{decision.outcome}: {decision.reason}"
            self._refuse(f"proposal ({proposal.id})", "only an admitted step is taken", got, "Look at the evidence")
        started = self._clock()
        update = self._apply("rl", self.config.optim.lr)
        self._pending = None
        return StepResult(self.version, update | {"time/optimizer": self._clock() - started})

    def discard(self, proposal: Proposal) -> None:
        """Forget a proposal and its gradients; weights, moments and version stay."""
        if proposal is self._pending:
            self._pending = None
            self.optimizer.zero()

    def supervise(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> float:
        """One supervised step (mean cross entropy in nats of the answers' tokens, returned) with `warm_start.lr`."""
        self._require_idle()
        pairs = [(np.asarray(p, np.int64), np.asarray(a, np.int64)) for p, a in zip(prompts, answers, strict=True)]
        for i, (prompt, answer) in enumerate(pairs):
            self.forward.require_ids(f"example ({i})", prompt, answer)
        self.optimizer.zero()
        tokens, total = sum(len(answer) for _, answer in pairs), 0.0
        for chosen in batches.plan(pairs, range(len(pairs)), self.config.train.max_tokens_per_microbatch):
            packed = batches.pack(pairs, chosen, self.device)
            targets = Targets(packed.targets_N, 1.0)
            logprobs_N, _ = self.forward.logprobs(self._prepared.of(self._leaves), packed, targets)
            loss = -logprobs_N.sum() / tokens
            total += _finite("supervised loss", loss)
            loss.backward()
        self._apply("supervised", self.config.warm_start.lr)
        return total

    def restored(self, version: WeightVersion, reference: dict[str, Tensor] | None) -> None:
        """Take over the version of a restored checkpoint. Raises `ModelError` if the weights are not its own."""
        if digest(self._leaves) != version.digest:
            do = "Resume with the engine.dtype of the run, or from an older checkpoint"
            raise ModelError(
                message(f"weights ({version})", "they must have the digest of their version", got=digest(self._leaves),
                        expected=version.digest, do=do)
            )  # fmt: skip
        self.version, self.reference, self._pending, self._changing = version, reference, None, False

    def _accumulate(self, microbatch: Microbatch, tally: Tally) -> None:
        """Score one microbatch and, where it has a gradient, add it."""
        config, packed, targets = self.config.loss, microbatch.packed, microbatch.targets
        started = self._clock()
        divergence_N = None
        with torch.set_grad_enabled(microbatch.has_signal or config.beta > 0):
            logprobs_N, entropy_N = self.forward.logprobs(self._prepared.of(self._leaves), packed, targets)
            policy = policy_loss(microbatch, logprobs_N, self.config)
            loss = policy.loss
            if self.reference is not None and config.beta > 0:
                with torch.no_grad():
                    reference_N, _ = self.forward.logprobs(self._prepared_reference.of(self.reference), packed, targets)
                divergence_N = reference_kl(logprobs_N, reference_N)
                loss = loss + config.beta * (microbatch.weights_N * divergence_N).sum()
        _finite("trainer logprobs", logprobs_N.sum())
        tally.loss += _finite("loss", loss)
        middle = self._clock()
        if loss.requires_grad:
            loss.backward()
        tally.seconds["time/forward"] += middle - started
        tally.seconds["time/backward"] += self._clock() - middle
        tally.add(packed, logprobs_N, entropy_N, policy)
        if divergence_N is not None:
            tally.add_divergence(divergence_N)

    def _apply(self, objective: Objective, base_lr: float) -> dict[str, float]:
        norm = self.optimizer.require_finite()
        self._changing = True  # whoever interrupts from here on leaves weights that nobody can vouch for
        self.optimizer.begin(objective)
        rate = self.optimizer.apply(norm, base_lr)
        self.version = WeightVersion(self.version.number + 1, digest(self._leaves))
        self._changing = False
        return {"grad_norm": norm, "learning_rate": rate}

    def require_whole(self) -> None:
        """Raise `GateRefused` if an update was cut off: then nobody can vouch for the weights."""
        if self._changing:
            got, do = "one that was interrupted", "Load the last checkpoint"
            self._refuse("trainer", "an update must not be cut off", got, do)

    def check(self) -> None:
        """Prove that the published weights are the rounded masters and have the digest of the version."""
        self.require_whole()
        for name, master in self.optimizer.masters.items():
            assert torch.equal(self._leaves[name], master.to(self._leaves[name].dtype)), f"{name} is not its master"
        assert digest(self._leaves) == self.version.digest, "the version does not name these weights"

    def _require_idle(self) -> None:
        self.require_whole()
        if self._pending is not None:
            self._refuse(f"proposal ({self._pending.id})", "it still waits", "no decision", "Step or discard it first")

    def _lag(self, batch: Batch) -> np.ndarray:
        """Versions between sampling and now, per token. Raises `InputError` outside 0 to the bound."""
        drawn_at = np.concatenate([r.provenance.weight_version for r in batch.rollouts])
        lag = self.version.number - drawn_at.astype(np.int64)
        bound = (self.config.pipeline.max_lag + 1) * self.config.train.num_minibatches - 1
        if lag.min() < 0 or lag.max() > bound:
            got, do = f"{lag.min()} to {lag.max()} behind {self.version}", "Sample again with the present weights"
            rule = "tokens must be of a recent weight version"
            raise InputError(message("batch (lag)", rule, got=got, expected=f"0 to {bound}", do=do))
        return lag

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @staticmethod
    def _refuse(subject: str, rule: str, got: object, do: str) -> None:
        raise GateRefused(message(subject, rule, got=got, expected="an admitting decision about it", do=do))


def _finite(subject: str, value: Tensor) -> float:
    number = float(value.detach())
    if not math.isfinite(number):
        do = "Nothing was changed. Look at the batch, or lower optim.lr"
        raise NumericsError(message(subject, "it must be finite", got=number, expected="a finite number", do=do))
    return number
