"""The corrected objective on a real trainer: what it takes away, what it leaves alone, and that it hides nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lockstep.core import Decision
from lockstep.errors import GateRefused, NumericsError
from lockstep.models.prepared import prepare
from lockstep.train import Batch, ledger
from lockstep.train.corrections import CORRECTIONS, OF_TOKENS
from lockstep.train.policy_loss import policy_loss

ADVANTAGES = [1.0, -1.0, 0.5, -0.5, 0.0, 2.0]
TYPES = sorted(CORRECTIONS)
REFUSED = [(kind, "gspo") for kind in OF_TOKENS]
STALE = {"optim": {"lr": 3e-3}, "train": {"num_minibatches": 8}}  # 8: rollouts may be 7 versions old


def stale(make, steps=2, **sections):
    """A trainer and a batch that it sampled `steps` versions ago."""
    trainer = make.trainer(**{**STALE, **sections})
    rollouts = make.on_policy(trainer, len(ADVANTAGES))
    for seed in range(steps):
        make.take_step(trainer, seed=10 + seed)
    return trainer, Batch.of(rollouts, ADVANTAGES)


def gradients(trainer):
    return {name: master.grad.clone() for name, master in trainer.optimizer.masters.items() if master.grad is not None}


def by_autograd(trainer, batch, weights):
    """Gradients of -sum of weight * share * A * log p, written out here."""
    leaves = {name: leaf.detach().clone().requires_grad_() for name, leaf in trainer._leaves.items()}
    (micro,) = batch.microbatches(10**6)
    prepared = prepare(leaves, trainer.model.arch, "float32")
    logprobs_N, _ = trainer.forward.logprobs(prepared, micro.packed, micro.targets)
    (-(weights * micro.weights_N * micro.advantages_N * logprobs_N).sum()).backward()
    return {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def one_batch(batch):
    """The same batch without the rollout that has no signal, which is packed apart."""
    keep = [i for i, a in enumerate(batch.advantages) if a]
    return Batch.of([batch.rollouts[i] for i in keep], batch.advantages[keep])


@pytest.mark.parametrize("kind", TYPES)
def test_the_gradient_is_that_of_the_weighted_score_function(make, kind):
    """First step on stale rollouts: the ratio is 1, so the gradient is weight * A * grad log p."""
    bounds = {"cap": 0.02} if kind == "tv_mask" else {"cap": 1.05, "low": 0.9, "high": 1.3}
    trainer, batch = stale(make, corrections={"type": kind, **bounds})
    batch = one_batch(batch)
    scored = trainer.score(batch.rollouts)
    trainer.propose(batch)
    (micro,) = batch.microbatches(10**6)
    anchor = torch.tensor(np.concatenate([p.values for p in scored]))
    corrected = CORRECTIONS[kind](anchor, micro.sampler_logprobs_N, micro.packed.sequence_N, trainer.config.corrections)
    assert len(set(corrected.causes_N.tolist())) > 1, "the bounds were chosen so that something happens"
    want = by_autograd(trainer, batch, corrected.weights_N)
    got = gradients(trainer)
    assert got.keys() == want.keys()
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, want[name], rtol=1e-5, atol=1e-7)


def test_a_removed_token_leaves_no_trace(make):
    """All tokens removed: the gradient is exactly 0. With the correction off it is not."""
    trainer, batch = stale(make, corrections={"type": "masked", "low": 1.0, "high": 1.0})
    proposal = trainer.propose(batch)
    found = ledger.metrics(proposal.ledger)
    assert found["corrections/frac_removed"] == 1.0
    assert all(not gradient.any() for gradient in gradients(trainer).values())
    plain, same = stale(make)
    plain.propose(same)
    assert any(gradient.any() for gradient in gradients(plain).values())


@pytest.mark.parametrize("loss", ["grpo", "reinforce", "cispo"])
def test_removing_a_sequence_is_giving_it_no_advantage(make, loss):
    """The gradient is that of fresh rollouts of which the removed ones have advantage 0: the denominator stays."""
    trainer, batch = stale(make, corrections={"type": "geometric", "low": 0.9, "high": 1.1}, loss={"type": loss})
    scored = trainer.score(batch.rollouts)
    means = [
        float(np.exp((s.values.astype(np.float64) - r.sampler_logprobs.values).mean()))
        for s, r in zip(scored, batch.rollouts, strict=True)
    ]
    kept = np.array([0.9 <= mean <= 1.1 for mean in means])
    assert kept.any() and not kept.all()
    removed_tokens = sum(len(r.token_ids) for r, k in zip(batch.rollouts, kept, strict=True) if not k)
    proposal = trainer.propose(batch)
    assert ledger.metrics(proposal.ledger)["corrections/frac_removed"] == removed_tokens / batch.num_tokens
    got = gradients(trainer)
    trainer.discard(proposal)
    fresh = [
        replace(r, sampler_logprobs=replace(s, contract=r.sampler_logprobs.contract))
        for r, s in zip(batch.rollouts, scored, strict=True)
    ]
    trainer.propose(Batch.of(fresh, batch.advantages * kept))
    for name, gradient in gradients(trainer).items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("kind", "loss"),
    [(kind, loss) for kind in TYPES for loss in ("grpo", "gspo", "cispo", "reinforce") if (kind, loss) not in REFUSED],
)
def test_raw_metrics_are_those_of_the_uncorrected_batch(make, kind, loss):
    """Corrected metrics alone would look fine whatever is wrong above: the raw ones have the same bits either way."""
    sections = {"loss": {"type": loss, "epsilon_low": 0.01, "epsilon_high": 0.01}}
    plain, batch = stale(make, **sections)
    corrected, same = stale(make, corrections={"type": kind, "low": 1.0, "high": 1.0, "cap": 1.0}, **sections)
    assert plain.version == corrected.version
    before, after = plain.propose(batch), corrected.propose(same)
    names = set(before.metrics) - {"loss", "time/forward", "time/backward"}
    assert {"ratio_new_old", "kl_new_old", "mean_abs_log_ratio_new_old", "ess", "entropy"} <= names
    assert {n: before.metrics[n] for n in names} == {n: after.metrics[n] for n in names}
    assert before.metrics["clamp_log_ratio_new_old_indicator"] > 0 or loss == "reinforce"
    assert before.metrics["ess"] < 1.0
    assert before.ledger == ()
    assert ledger.metrics(after.ledger)["corrections/frac_clipped"] == 0.0, "the first step has a ratio of exactly 1"


@pytest.mark.parametrize("kind", TYPES)
def test_every_token_is_in_the_ledger_whatever_the_microbatches(make, kind):
    found = []
    for budget in (8, 30, 5000):
        train = {**STALE["train"], "max_tokens_per_microbatch": budget}
        trainer, batch = stale(make, corrections={"type": kind}, train=train)
        proposal = trainer.propose(batch)
        tokens = sum(entry.tokens.sum() for entry in proposal.ledger)
        assert tokens == batch.num_tokens
        zero = sum(entry.tokens[ledger.SIGNS.index("zero")].sum() for entry in proposal.ledger)
        assert zero == len(batch.rollouts[4].token_ids)
        found.append([entry.tokens for entry in proposal.ledger])
    assert len(found[0]) > len(found[2])


def test_the_anchor_of_later_minibatches_is_from_before_the_first(make):
    """Two minibatches: the second is clipped by what the first step did, and weighted by what was stale before it."""
    trainer, batch = stale(make, corrections={"type": "token_tis"})
    anchored = replace(batch, anchor=tuple(trainer.score(batch.rollouts)))
    first, second = anchored.minibatches(2, seed=0, step=1)
    proposal = trainer.propose(first)
    trainer.step(proposal, make.admit(proposal))
    (micro,) = one_batch(second).microbatches(10**6)
    assert micro.anchor_logprobs_N is None, "a batch without an anchor starts from its own logprobs"
    (*_, micro) = second.microbatches(10**6)
    assert micro.anchor_logprobs_N is not None
    chosen = [batch.rollouts.index(second.rollouts[i]) for i in micro.packed.index]
    want = np.concatenate([anchored.anchor[i].values for i in chosen])
    assert np.array_equal(micro.anchor_logprobs_N.numpy(), want)
    now_N = torch.tensor(np.concatenate([trainer.score([batch.rollouts[i]])[0].values for i in chosen]))
    assert not torch.equal(now_N, micro.anchor_logprobs_N), "the first step moved them"
    found = policy_loss(micro, now_N, trainer.config)
    ratio = np.exp(want.astype(np.float64) - micro.sampler_logprobs_N.numpy())
    weights = np.minimum(ratio, 2.0).astype(np.float32)
    moved = np.exp(now_N.numpy() - want)
    a = micro.advantages_N.numpy()
    clipped = np.minimum(moved * a, np.clip(moved, 0.8, 1.2) * a)
    assert float(found.loss) == pytest.approx(-float((micro.weights_N.numpy() * weights * clipped).sum()), rel=1e-4)
    assert found.entry is not None
    assert found.entry.weight == pytest.approx(float(weights.sum()), rel=1e-6)
    assert found.entry.clipped == int(((moved < 0.8) | (moved > 1.2)).sum())


@pytest.mark.parametrize("kind", TYPES)
def test_fresh_rollouts_take_the_very_step_they_take_without_a_correction(make, kind):
    digests = set()
    for corrections in ({"type": "none"}, {"type": kind}):
        trainer = make.trainer("bfloat16", optim={"lr": 1e-2}, corrections=corrections)
        for seed in range(3):
            make.take_step(trainer, seed)
        digests.add(trainer.version.digest)
    assert len(digests) == 1


def test_a_correction_changes_the_step_on_stale_rollouts(make):
    """The counterpart of the test above: it can fail."""
    digests = set()
    for corrections in ({"type": "none"}, {"type": "token_tis"}, {"type": "geometric", "low": 0.9, "high": 1.1}):
        trainer, batch = stale(make, corrections=corrections)
        proposal = trainer.propose(batch)
        trainer.step(proposal, make.admit(proposal))
        digests.add(trainer.version.digest)
    assert len(digests) == 3


@pytest.mark.parametrize("kind", TYPES)
def test_no_corrected_gradient_is_applied_unless_admitted(make, kind):
    trainer, batch = stale(make, corrections={"type": kind})
    before = trainer.version, {name: p.clone() for name, p in trainer.params.items()}
    proposal = trainer.propose(batch)
    for decision in (Decision("reject", proposal.id, "1 token differs"), Decision("admit", "another", "")):
        with pytest.raises(GateRefused):
            trainer.step(proposal, decision)
    assert trainer.version == before[0]
    assert all(torch.equal(p, before[1][name]) for name, p in trainer.params.items())


@pytest.mark.parametrize("kind", TYPES)
def test_a_mask_does_not_hide_what_is_not_finite(make, kind):
    trainer, batch = stale(make, corrections={"type": kind})
    with torch.no_grad():
        trainer._leaves["norm"][3] = float("nan")
    with pytest.raises(NumericsError, match="must be finite"):
        trainer.propose(batch)
