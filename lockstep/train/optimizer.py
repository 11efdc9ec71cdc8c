"""AdamW over fp32 master weights, and the publishing of them in the model's dtype.

In: parameter leaves that the forward uses, gradients that autograd leaves on them. Out: the same leaves, changed in
place, so that what is published is what the forward uses.

    leaf.grad (model dtype) --added to--> master.grad (fp32) --clip, AdamW--> master (fp32) --rounded, in place--> leaf
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from lockstep.config import OptimConfig
from lockstep.errors import NumericsError, message

Objective = Literal["rl", "supervised"]
MOMENTS = ("exp_avg", "exp_avg_sq")


class Optimizer:
    """Masters, moments and accumulated gradients of `leaves`; `steps` counts updates of the present objective.

    Weight decay is for matrices only (not norms and biases). The learning rate rises linearly over `warmup_steps`, then
    stays. Moments belong to one objective: `begin` with another one starts them anew.
    """

    def __init__(self, leaves: Mapping[str, Tensor], config: OptimConfig) -> None:
        self.leaves = dict(leaves)
        self.masters = {name: leaf.detach().to(torch.float32, copy=True) for name, leaf in self.leaves.items()}
        self.objective: Objective = "rl"
        self.steps = 0
        self._config = config
        self._adamw = self._fresh()
        self._sums: dict[str, Tensor] = {}  # memory of the gradients, touched once: new pages are dear
        for name, leaf in self.leaves.items():
            leaf.requires_grad_()
            leaf.register_post_accumulate_grad_hook(self._collector(name))

    def begin(self, objective: Objective) -> None:
        """Say what the coming steps optimise."""
        if objective != self.objective:
            self.objective, self.steps = objective, 0
            self._adamw = self._fresh()

    def learning_rate(self, base: float) -> float:
        """The rate of the next step."""
        return base * min(1.0, (self.steps + 1) / max(1, self._config.warmup_steps))

    def require_finite(self) -> float:
        """The global norm of the accumulated gradients. Raises `NumericsError` if it is not finite."""
        grads = [master.grad for master in self.masters.values() if master.grad is not None]
        norm = math.sqrt(sum(float(torch.linalg.vector_norm(grad, dtype=torch.float64)) ** 2 for grad in grads))
        if math.isfinite(norm):
            return norm
        bad = [n for n, m in self.masters.items() if m.grad is not None and not bool(torch.isfinite(m.grad).all())]
        subject = f"gradient ({bad[0] if bad else 'norm'})"
        do = "Nothing was changed. Look at the batch, or lower optim.lr"
        raise NumericsError(message(subject, "it must be finite", got=norm, expected="a finite norm", do=do))

    def apply(self, norm: float, base_lr: float) -> float:
        """Clip by `norm` (from `require_finite`), update, publish, forget the gradients. Returns the learning rate."""
        rate = self.learning_rate(base_lr)
        scale = min(1.0, self._config.max_grad_norm / (norm + 1e-6))
        for name, master in self.masters.items():
            if master.grad is None:
                master.grad = self._sum(name).zero_()  # decay and momentum go on where there was no signal
            elif scale < 1.0:
                master.grad.mul_(scale)
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._adamw.step()
        self.zero()
        self.steps += 1
        self.publish()
        return rate

    def publish(self) -> None:
        """Round the masters into the leaves, in place."""
        with torch.no_grad():
            for name, leaf in self.leaves.items():
                leaf.copy_(self.masters[name])

    def zero(self) -> None:
        """Forget the accumulated gradients; their memory waits for the next."""
        for master in self.masters.values():
            master.grad = None

    def moments(self) -> dict[str, Tensor]:
        """First and second moments fp32 under ``"{moment}.{parameter}"``; empty before the first step."""
        state = self._adamw.state
        return {f"{kind}.{n}": state[m][kind] for kind in MOMENTS for n, m in self.masters.items() if m in state}

    def restore(
        self, masters: Mapping[str, Tensor], moments: Mapping[str, Tensor], objective: Objective, steps: int
    ) -> None:
        """Take over saved state (names as in `masters` and `moments()`), then publish."""
        self.objective, self.steps = objective, steps
        self.zero()
        self._adamw = self._fresh()
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(masters[name])
                if moments:
                    kept = {kind: moments[f"{kind}.{name}"].to(master.device, copy=True) for kind in MOMENTS}
                    count = torch.tensor(float(steps), dtype=torch.float32, device=master.device)
                    self._adamw.state[master] = {"step": count, **kept}
        self.publish()

    def _fresh(self) -> torch.optim.AdamW:
        """torch's fused AdamW: one pass over the memory, elementwise, so the same bits for any number of threads."""
        config, every = self._config, self.masters.values()
        groups = [
            {"params": [m for m in every if m.dim() >= 2], "weight_decay": config.weight_decay},
            {"params": [m for m in every if m.dim() < 2], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)

    def _sum(self, name: str) -> Tensor:
        if name not in self._sums:
            self._sums[name] = torch.empty_like(self.masters[name])
        return self._sums[name]

    def _collector(self, name: str) -> Callable[[Tensor], None]:
        """A hook that moves a leaf's gradient into the fp32 sum as soon as it is complete."""
        master = self.masters[name]

        def collect(leaf: Tensor) -> None:
            assert leaf.grad is not None, "the hook runs after accumulation"
            if master.grad is None:
                master.grad = self._sum(name).copy_(leaf.grad)
            else:
                master.grad.add_(leaf.grad)
            leaf.grad = None

        return collect
