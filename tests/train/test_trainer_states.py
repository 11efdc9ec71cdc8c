"""Any order of proposals, decisions, interruptions and restores keeps the trainer's invariants."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from lockstep.core import Decision
from lockstep.errors import GateRefused
from lockstep.models.checkpoint import digest
from lockstep.train import Batch, checkpoint

seeds = st.integers(0, 3)


def machine(make):
    """The state machine, around the functions of conftest."""

    class Machine(RuleBasedStateMachine):
        def __init__(self):
            super().__init__()
            self.trainer = make.trainer("bfloat16", optim={"lr": 1e-3}, loss={"type": "gspo", "beta": 0.1})
            self.version = self.trainer.version
            self.folder = tempfile.TemporaryDirectory()
            self.saved = None
            self.old = []  # proposals that are spent

        def teardown(self):
            self.folder.cleanup()

        def state(self):
            optimizer = self.trainer.optimizer
            return digest(optimizer.masters), digest(optimizer.moments()), optimizer.steps, optimizer.objective

        @precondition(lambda self: self.trainer.pending is None)
        @rule(seed=seeds, signal=st.booleans())
        def propose(self, seed, signal):
            before = self.state()
            rollouts = make.on_policy(self.trainer, 4, seed)
            proposal = self.trainer.propose(Batch.of(rollouts, np.array([1.0, -1.0, 0.5, 0.0]) * signal))
            assert proposal.version == self.version
            for mine, theirs in zip(proposal.trainer_logprobs, rollouts, strict=True):
                assert mine.values.tobytes() == theirs.sampler_logprobs.values.tobytes()
            assert self.state() == before

        @precondition(lambda self: self.trainer.pending is not None)
        @rule()
        def admit(self):
            proposal = self.trainer.pending
            result = self.trainer.step(proposal, make.admit(proposal))
            assert result.version.number == self.version.number + 1
            self.version = result.version
            self.old.append(proposal)

        @precondition(lambda self: self.trainer.pending is not None)
        @rule(outcome=st.sampled_from(["hold", "reject"]), discard=st.booleans())
        def refuse(self, outcome, discard):
            proposal, before = self.trainer.pending, self.state()
            with pytest.raises(GateRefused):
                self.trainer.step(proposal, Decision(outcome, proposal.id, "because"))
            if discard:
                self.trainer.discard(proposal)
                self.old.append(proposal)
            assert self.state() == before

        @precondition(lambda self: self.old)
        @rule(data=st.data())
        def reuse(self, data):
            spent, before = data.draw(st.sampled_from(self.old)), self.state()
            with pytest.raises(GateRefused):
                self.trainer.step(spent, make.admit(spent))
            assert self.state() == before

        @rule(seed=seeds)
        def supervise(self, seed):
            if self.trainer.pending is not None:
                with pytest.raises(GateRefused):
                    self.trainer.supervise([[5]], [[6]])
                return
            self.trainer.supervise([[5, 6 + seed]], [[7, 8]])
            assert self.trainer.version.number == self.version.number + 1
            self.version = self.trainer.version

        @rule()
        def save(self):
            path = checkpoint.save(Path(self.folder.name), self.trainer, self.version.number)
            self.saved = (path, self.version, self.state())

        @precondition(lambda self: self.saved is not None)
        @rule()
        def load(self):
            path, version, state = self.saved
            if self.trainer.pending is not None:
                self.old.append(self.trainer.pending)
            checkpoint.load(path, self.trainer)
            assert (self.trainer.version, self.state()) == (version, state)
            self.version = version

        @invariant()
        def published_weights_are_the_rounded_masters(self):
            self.trainer.check()
            assert self.trainer.version == self.version

    return Machine


def test_no_order_of_events_breaks_the_trainer(make):
    run_state_machine_as_test(machine(make), settings=settings(max_examples=8, stateful_step_count=15, deadline=None))
