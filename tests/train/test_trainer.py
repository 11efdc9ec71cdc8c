"""The trainer takes a step only if it was admitted, and then the right one."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lockstep.core import Contract, Decision, Logprobs, SamplingParams, Scorer
from lockstep.errors import ContractError, GateRefused, InputError, ModelError, NumericsError
from lockstep.models import Model
from lockstep.models.checkpoint import digest
from lockstep.models.tiny import TINY, initial_parameters, small
from lockstep.train import Batch, Trainer

ADVANTAGES = [1.0, -1.0, 0.5, -0.5]
LOSSES = ["grpo", "gspo", "ppo", "reinforce", "cispo"]


def frozen(trainer):
    """Everything that must not change when a step is refused."""
    optimizer = trainer.optimizer
    tensors = {**trainer.params, **{f"m.{n}": t for n, t in {**optimizer.masters, **optimizer.moments()}.items()}}
    return trainer.version, optimizer.steps, {n: t.clone() for n, t in tensors.items()}


def assert_unchanged(trainer, before):
    version, steps, tensors = frozen(trainer)
    assert (version, steps) == before[:2]
    assert tensors.keys() == before[2].keys()
    assert all(torch.equal(tensors[n], before[2][n]) for n in tensors)
    trainer.check()


def bits(logprobs):
    return [p.values.tobytes() for p in logprobs]


def test_it_is_a_scorer_and_starts_at_version_zero_with_its_digest(make):
    trainer = make.trainer()
    assert isinstance(trainer, Scorer)
    assert trainer.version.number == 0
    assert trainer.version.digest == digest(trainer.params)


def test_it_owns_its_weights(make):
    given = initial_parameters(TINY, 0)
    template = make.trainer()
    trainer = Trainer(template.model, given, template.config)
    for p in given.values():
        p.zero_()
    assert digest(trainer.params) == trainer.version.digest == template.version.digest


def test_weights_of_another_dtype_are_refused(make):
    template = make.trainer()
    with pytest.raises(ModelError, match="bfloat16"):
        Trainer(template.model, {n: p.bfloat16() for n, p in template.params.items()}, template.config)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=0.7)])
def test_on_policy_the_proposal_has_the_scored_bits_and_a_ratio_of_exactly_one(make, dtype, params):
    trainer = make.trainer(dtype)
    rollouts = make.on_policy(trainer, 4, params=params)
    proposal = trainer.propose(Batch.of(rollouts, ADVANTAGES))
    assert bits(proposal.trainer_logprobs) == bits([r.sampler_logprobs for r in rollouts])
    for mine, rollout in zip(proposal.trainer_logprobs, rollouts, strict=True):
        assert not (mine - rollout.sampler_logprobs).any()
    names = ("ratio_new_old", "kl_new_old", "mean_abs_log_ratio_new_old", "clamp_log_ratio_new_old_indicator", "ess")
    assert [proposal.metrics[n] for n in names] == [1.0, 0.0, 0.0, 0.0, 1.0]
    assert proposal.metrics["lag"] == 0.0
    assert 0.0 < proposal.metrics["entropy"] <= math.log(TINY.vocab_size)
    assert {"loss", "time/forward", "time/backward", "groups_without_signal"} <= proposal.metrics.keys()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_microbatch_budget_moves_no_bit_of_a_logprob(make, dtype):
    rollouts = make.on_policy(make.trainer(dtype), 6, prompt=7, tokens=9)
    scores = [
        bits(make.trainer(dtype, train={"max_tokens_per_microbatch": budget}).score(rollouts))
        for budget in (8, 40, 5000)
    ]
    assert scores[0] == scores[1] == scores[2] == bits([r.sampler_logprobs for r in rollouts])


def test_contracts_may_be_mixed_when_scoring(make):
    """Raw logprobs at T = 1 and processed ones at T = 0.5 of the same tokens: each under its own contract."""
    trainer = make.trainer()
    cold = make.rollout(params=SamplingParams(temperature=0.5), name="cold")
    kept = make.rollout(params=SamplingParams(top_k=2), kept=[[8, 20], [30, 9]], name="kept")
    greedy = make.rollout(params=SamplingParams(temperature=0.0), name="greedy")
    got = trainer.score([cold, kept, greedy, cold])
    assert [p.contract.temperature for p in got] == [0.5, 1.0, 1.0, 0.5]
    assert [p.contract.mode for p in got] == ["processed", "processed", "raw", "processed"]
    assert bits(got[:1]) == bits(got[3:])
    full = np.array(
        [trainer.score([make.rollout(tokens=(t,))])[0].values[0] for t in range(TINY.vocab_size)], np.float64
    )
    assert got[2].values[0] == pytest.approx(full[8], abs=1e-6)
    assert got[0].values[0] == pytest.approx(2 * full[8] - np.log(np.exp(2 * full).sum()), abs=1e-5)
    assert got[1].values[0] == pytest.approx(full[8] - np.logaddexp(full[8], full[20]), abs=1e-5)


def test_scores_carry_the_trainer_s_version(make):
    trainer = make.trainer()
    make.take_step(trainer)
    (score,) = trainer.score([make.rollout()])
    assert score.contract == Contract("processed", 1.0, "full", "float32", (1,))


def test_an_admitted_step_changes_the_published_weights_in_place(make):
    trainer = make.trainer("bfloat16", optim={"lr": 1e-2})
    leaves, before = trainer.params, frozen(trainer)
    proposal = trainer.propose(Batch.of(make.on_policy(trainer), ADVANTAGES))
    assert trainer.pending is proposal
    assert_unchanged(trainer, before)
    result = trainer.step(proposal, make.admit(proposal))
    assert trainer.pending is None
    assert result.version == trainer.version
    assert trainer.version.number == 1
    trainer.check()
    assert trainer.version.digest != before[0].digest
    assert all(trainer.params[n].data_ptr() == leaves[n].data_ptr() for n in leaves)
    assert result.metrics["grad_norm"] > 0
    assert result.metrics["learning_rate"] == 1e-2
    assert "time/optimizer" in result.metrics


@pytest.mark.parametrize(
    "decide",
    [
        lambda p: Decision("reject", p.id, "3 of 18 logprobs differ"),
        lambda p: Decision("hold", p.id, "nothing was compared"),
        lambda p: Decision("admit", "proposal 7", "about something else"),
        lambda p: Decision("admit", "", ""),
        lambda _: None,
        lambda _: True,
    ],
)
def test_without_an_admitting_decision_about_it_nothing_moves(make, decide):
    trainer = make.trainer()
    make.take_step(trainer)
    before = frozen(trainer)
    proposal = trainer.propose(Batch.of(make.on_policy(trainer, seed=1), ADVANTAGES))
    with pytest.raises(GateRefused, match=r"proposal \(.*\): .* expected an admitting decision about it"):
        trainer.step(proposal, decide(proposal))
    assert_unchanged(trainer, before)
    assert trainer.pending is proposal


def test_a_refusal_tells_the_gate_s_reason(make):
    trainer = make.trainer()
    proposal = trainer.propose(Batch.of(make.on_policy(trainer), ADVANTAGES))
    with pytest.raises(GateRefused, match="reject: 3 of 18 logprobs differ"):
        trainer.step(proposal, Decision("reject", proposal.id, "3 of 18 logprobs differ"))


def test_a_proposal_is_good_once_and_only_for_the_trainer_that_made_it(make):
    trainer, other = make.trainer(), make.trainer()
    batch = Batch.of(make.on_policy(trainer), ADVANTAGES)
    proposal, foreign = trainer.propose(batch), other.propose(batch)
    with pytest.raises(GateRefused, match="the one that waits"):
        trainer.step(foreign, make.admit(foreign))
    with pytest.raises(GateRefused, match="the one that waits"):
        trainer.step(replace(proposal, loss=0.0), make.admit(proposal))
    trainer.step(proposal, make.admit(proposal))
    before = frozen(trainer)
    with pytest.raises(GateRefused, match="the one that waits"):
        trainer.step(proposal, make.admit(proposal))
    assert_unchanged(trainer, before)


def test_a_discarded_proposal_leaves_no_trace(make):
    trainer, untouched = make.trainer(), make.trainer()
    proposal = trainer.propose(Batch.of(make.on_policy(trainer, seed=5), ADVANTAGES))
    trainer.discard(proposal)
    with pytest.raises(GateRefused):
        trainer.step(proposal, make.admit(proposal))
    trainer.discard(proposal)
    for one in (trainer, untouched):
        make.take_step(one)
    assert trainer.version == untouched.version


def test_only_one_proposal_waits(make):
    trainer = make.trainer()
    batch = Batch.of(make.on_policy(trainer), ADVANTAGES)
    proposal = trainer.propose(batch)
    with pytest.raises(GateRefused, match="still waits"):
        trainer.propose(batch)
    with pytest.raises(GateRefused, match="still waits"):
        trainer.supervise([[5]], [[6]])
    trainer.step(proposal, make.admit(proposal))


def test_an_interrupted_update_is_never_built_upon(make, monkeypatch):
    trainer = make.trainer()
    batch = Batch.of(make.on_policy(trainer), ADVANTAGES)
    proposal = trainer.propose(batch)

    def interrupted():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer.optimizer, "publish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trainer.step(proposal, make.admit(proposal))
    for attempt in (
        lambda: trainer.step(proposal, make.admit(proposal)),
        lambda: trainer.propose(batch),
        lambda: trainer.supervise([[5]], [[6]]),
        lambda: trainer.score(batch.rollouts),
    ):
        with pytest.raises(GateRefused, match="must not be cut off"):
            attempt()


def test_weights_that_give_no_number_are_reported_before_anything_moves(make):
    template = make.trainer()
    rollouts = make.on_policy(template)
    params = template.params
    params["norm"] = params["norm"].clone().fill_(math.nan)
    trainer = Trainer(template.model, params, template.config)
    version = trainer.version
    for advantages in (ADVANTAGES, [0.0] * 4):
        with pytest.raises(NumericsError, match="trainer logprobs: it must be finite - got nan"):
            trainer.propose(Batch.of(rollouts, advantages))
    assert trainer.version == version
    assert trainer.pending is None
    with pytest.raises(NumericsError, match="supervised loss"):
        trainer.supervise([[5]], [[6]])


def test_a_loss_that_overflows_is_refused(make):
    trainer = make.trainer()
    before = frozen(trainer)
    rollouts = make.on_policy(trainer)
    far = [
        replace(r, sampler_logprobs=Logprobs(r.sampler_logprobs.values - 500, r.sampler_logprobs.contract))
        for r in rollouts
    ]
    with pytest.raises(NumericsError, match="loss: it must be finite - got inf"):
        trainer.propose(Batch.of(far, [-1.0] * 4))
    assert_unchanged(trainer, before)
    make.take_step(trainer)
    clean = make.trainer()
    make.take_step(clean)
    assert trainer.version == clean.version


def test_a_gradient_that_is_not_finite_is_refused(make):
    trainer = make.trainer()
    make.take_step(trainer)
    before = frozen(trainer)
    proposal = trainer.propose(Batch.of(make.on_policy(trainer, seed=2), ADVANTAGES))
    trainer.optimizer.masters["norm"].grad[0] = math.inf
    with pytest.raises(NumericsError, match=r"gradient \(norm\)"):
        trainer.step(proposal, make.admit(proposal))
    assert_unchanged(trainer, before)
    trainer.discard(proposal)
    make.take_step(trainer, seed=2)
    assert trainer.version.number == 2


def oracle(trainer, batch, config):
    """Gradients of the mean REINFORCE loss from transformers' Llama, sequence by sequence, in float64."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from lockstep.models.checkpoint import from_hf, to_hf

    arch = trainer.model.arch
    llama = LlamaForCausalLM(LlamaConfig(**arch.to_hf(), attn_implementation="eager")).double()
    llama.load_state_dict({n: t.double() for n, t in to_hf(trainer.params, arch).items()}, strict=False)
    for rollout, advantage in zip(batch.rollouts, batch.advantages, strict=True):
        whole = torch.tensor([[*rollout.prompt_ids, *rollout.token_ids]])
        logits = llama(whole).logits[0] / config["temperature"]
        for t, token in enumerate(rollout.token_ids):
            logprob = logits[len(rollout.prompt_ids) + t - 1].log_softmax(-1)[int(token)]
            (-advantage * logprob / batch.num_tokens).backward(retain_graph=True)
    grads = {n: p.grad for n, p in llama.named_parameters() if n in to_hf(trainer.params, arch)}
    return from_hf(grads, arch)


@pytest.mark.parametrize("name", ["grpo", "reinforce"])
def test_gradients_are_those_of_transformers(make, name):
    """From token ids to every weight's gradient: the shift, the temperature, the weights, the backward passes."""
    config = {"temperature": 0.8}
    trainer = make.trainer(arch=small("llama"), loss={"type": name}, train={"max_tokens_per_microbatch": 12})
    params = SamplingParams(temperature=0.8)
    batch = Batch.of(make.on_policy(trainer, prompt=5, tokens=4, params=params), ADVANTAGES)
    trainer.propose(batch)
    for parameter, expected in oracle(trainer, batch, config).items():
        got = trainer.optimizer.masters[parameter].grad
        scale = float(expected.abs().max())
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=2e-5 * scale, msg=parameter)


@pytest.mark.parametrize("name", LOSSES)
def test_every_objective_raises_what_was_good_and_lowers_what_was_bad(make, name):
    normalize = "sequence" if name == "gspo" else "token"
    trainer = make.trainer("bfloat16", optim={"lr": 1e-3}, loss={"type": name, "normalize": normalize})
    rollouts = make.on_policy(trainer)
    proposal = trainer.propose(Batch.of(rollouts, ADVANTAGES, normalize))
    trainer.step(proposal, make.admit(proposal))
    change = [
        float(new.update_since(old.sampler_logprobs).sum())
        for new, old in zip(trainer.score(rollouts), rollouts, strict=True)
    ]
    assert [np.sign(c) for c in change] == [1, -1, 1, -1]


def test_after_a_step_the_ratios_are_no_longer_one(make):
    trainer = make.trainer(optim={"lr": 1e-2}, train={"num_minibatches": 2})
    batch = Batch.of(make.on_policy(trainer), ADVANTAGES)
    proposal = trainer.propose(batch)
    trainer.step(proposal, make.admit(proposal))
    again = trainer.propose(batch)
    assert again.metrics["lag"] == 1.0
    assert again.metrics["ratio_new_old"] != 1.0
    assert again.metrics["kl_new_old"] > 0.0
    assert 0.0 < again.metrics["ess"] < 1.0
    assert again.metrics["clamp_log_ratio_new_old_indicator"] > 0.0
    log_ratio = np.concatenate(
        [
            m.update_since(r.sampler_logprobs).astype(np.float64)
            for m, r in zip(again.trainer_logprobs, batch.rollouts, strict=True)
        ]
    )
    assert again.metrics["mean_abs_log_ratio_new_old"] == pytest.approx(np.abs(log_ratio).mean(), rel=1e-6)


@pytest.mark.parametrize(("version", "minibatches", "bound"), [(0, 2, 1), (5, 1, 0)])
def test_stale_tokens_and_tokens_of_the_future_are_refused(make, version, minibatches, bound):
    trainer = make.trainer(train={"num_minibatches": minibatches})
    for i in range(3):
        make.take_step(trainer, seed=i)
    with pytest.raises(InputError, match=rf"batch \(lag\).*expected 0 to {bound}\."):
        trainer.propose(Batch.of([make.rollout(version=version)], [1.0]))
    assert trainer.pending is None


def test_rollouts_without_signal_are_scored_but_have_no_gradient(make):
    trainer = make.trainer()
    rollouts = make.on_policy(trainer)
    proposal = trainer.propose(Batch.of(rollouts, [0.0] * 4))
    assert bits(proposal.trainer_logprobs) == bits([r.sampler_logprobs for r in rollouts])
    assert proposal.metrics["groups_without_signal"] == 2.0
    assert proposal.loss == 0.0
    assert trainer.step(proposal, make.admit(proposal)).metrics["grad_norm"] == 0.0


def test_leaving_out_what_has_no_signal_leaves_the_gradient(make):
    """The silent half goes through its own microbatch without a graph; only the token count of the mean knows of it."""
    trainer, both = make.trainer(), make.trainer()
    rollouts = make.on_policy(trainer)
    half = trainer.propose(Batch.of(rollouts[:2], ADVANTAGES[:2]))
    both.propose(Batch.of(rollouts, [*ADVANTAGES[:2], 0.0, 0.0]))
    share = sum(len(r.token_ids) for r in rollouts[:2]) / sum(len(r.token_ids) for r in rollouts)
    for name, master in trainer.optimizer.masters.items():
        torch.testing.assert_close(both.optimizer.masters[name].grad, master.grad * share)
    trainer.discard(half)


def test_the_kl_is_to_the_weights_that_rl_started_from(make):
    trainer = make.trainer(optim={"lr": 1e-2}, loss={"beta": 0.5})
    trainer.supervise([[5, 6]], [[7, 8]])
    assert trainer.reference is None
    start = trainer.params["norm"].clone()
    rollouts = make.on_policy(trainer)
    reference = trainer.score(rollouts)
    first = trainer.propose(Batch.of(rollouts, ADVANTAGES))
    assert first.metrics["kl"] == 0.0
    trainer.step(first, make.admit(first))
    assert torch.equal(trainer.reference["norm"], start)
    fresh = make.on_policy(trainer)
    second = trainer.propose(Batch.of(fresh, [0.0] * 4))
    log_ratio = np.concatenate(
        [a.values.astype(np.float64) - b.values for a, b in zip(reference, second.trainer_logprobs, strict=True)]
    )
    expected = float((np.expm1(log_ratio) - log_ratio).mean())
    assert second.metrics["kl"] == pytest.approx(expected, rel=1e-4)
    assert second.loss == pytest.approx(0.5 * expected, rel=1e-4)
    trainer.step(second, make.admit(second))
    third = trainer.propose(Batch.of(make.on_policy(trainer), [0.0] * 4))
    assert third.metrics["kl"] < second.metrics["kl"]


def test_without_beta_there_is_no_reference_and_no_kl(make):
    trainer = make.trainer()
    proposal = trainer.propose(Batch.of(make.on_policy(trainer), ADVANTAGES))
    assert trainer.reference is None
    assert "kl" not in proposal.metrics


def test_supervised_steps_learn_the_answers(make):
    trainer = make.trainer("bfloat16", warm_start={"lr": 3e-3})
    prompts, answers = [[5, 6, 7], [8, 9]], [[10, 11, 1], [12, 1]]
    scored = trainer.score([make.rollout(p, a) for p, a in zip(prompts, answers, strict=True)])
    expected = -np.concatenate([s.values for s in scored]).mean(dtype=np.float64)
    losses = [trainer.supervise(prompts, answers) for _ in range(20)]
    assert losses[0] == pytest.approx(expected, rel=1e-5)
    assert losses[-1] < 0.2 * losses[0]
    assert trainer.version.number == 20
    trainer.check()
    assert trainer.optimizer.objective == "supervised"
    make.take_step(trainer)
    assert (trainer.optimizer.objective, trainer.optimizer.steps) == ("rl", 1)


@pytest.mark.parametrize(("prompts", "answers"), [([[]], [[5]]), ([[5]], [[]]), ([[5]], [[TINY.vocab_size]])])
def test_bad_supervised_examples_are_named(make, prompts, answers):
    with pytest.raises(InputError, match=r"example \(0\)"):
        make.trainer().supervise(prompts, answers)


def test_rollouts_of_another_head_are_refused(make):
    trainer = make.trainer()
    with pytest.raises(ContractError, match="one head on both sides"):
        trainer.propose(Batch.of([make.rollout(head="model")], [1.0]))
    with pytest.raises(ContractError, match="one head on both sides"):
        trainer.score([make.rollout(head="model")])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_inputs_give_the_same_bits(make, dtype):
    """Large enough that torch would split the work (and, for some backward kernels, race) over threads."""
    digests = set()
    for _ in range(3):
        trainer = make.trainer(dtype, optim={"lr": 1e-3}, loss={"type": "gspo"})
        batch = Batch.of(make.on_policy(trainer, 32, prompt=30, tokens=12), np.linspace(-1, 1, 32))
        assert sum(m.packed.ids_T.numel() for m in batch.microbatches(2048)) * TINY.hidden_size > 2 * 32768
        for _ in range(2):
            proposal = trainer.propose(batch)
            trainer.step(proposal, make.admit(proposal))
            batch = Batch.of(make.on_policy(trainer, 32, prompt=30, tokens=12), np.linspace(-1, 1, 32))
        digests.add((trainer.version, digest(trainer.optimizer.masters), digest(trainer.optimizer.moments())))
    assert len(digests) == 1


def test_untied_heads_are_trained_too(make):
    trainer = make.trainer(arch=small("qwen2"), optim={"lr": 1e-2})
    assert isinstance(trainer.model, Model)
    before = {n: p.clone() for n, p in trainer.params.items()}
    make.take_step(trainer)
    assert [n for n, p in trainer.params.items() if torch.equal(before[n], p)] == []


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_bf16_gradients_point_where_fp32_ones_do(make, family):
    """The same weights and tokens in both dtypes: a sum kept in bf16, or an addend dropped, would turn the gradient."""
    narrow = make.trainer("bfloat16", arch=small(family))
    wide = make.trainer("float32", arch=small(family))
    wide.optimizer.restore({n: p.float() for n, p in narrow.params.items()}, {}, "rl", 0)
    for trainer in (narrow, wide):
        trainer.propose(Batch.of(make.on_policy(trainer, 32, prompt=20, tokens=9), np.linspace(-1, 2, 32)))
    for name, master in narrow.optimizer.masters.items():
        got, expected = master.grad.double().flatten(), wide.optimizer.masters[name].grad.double().flatten()
        assert torch.cosine_similarity(got, expected, dim=0) > 0.995, name
        assert float(got.norm() / expected.norm()) == pytest.approx(1.0, abs=0.02), name
