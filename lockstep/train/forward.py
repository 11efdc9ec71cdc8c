"""One packed forward through the one model: hidden states of whole sequences, logprobs of their completions.

In: prepared parameters, packed sequences, targets. Out: logprobs (differentiable) and entropies of the targets.
Model, attention arithmetic and head are the engine's; only the place where keys live differs.

Letters: T packed tokens, H query heads, K kv heads, D head dim, E hidden size, N targets, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from lockstep.core import Rollout
from lockstep.errors import ContractError, InputError, ModelError, message
from lockstep.kernels.adjust import require_vocabulary
from lockstep.kernels.attention import Packing, packed_attention
from lockstep.kernels.head import Targets, target_logprobs
from lockstep.models import decoder
from lockstep.models.architecture import Architecture
from lockstep.models.prepared import Prepared
from lockstep.train.batch import Packed


@dataclass(frozen=True, slots=True)
class Forward:
    """The computation without its weights: which network, in which dtypes. Checks what is put into it."""

    arch: Architecture
    dtype: Literal["bfloat16", "float32"]
    head_dtype: Literal["float32", "model"]

    def logprobs(self, weights: Prepared, packed: Packed, targets: Targets) -> tuple[Tensor, Tensor]:
        """Logprobs (differentiable) and entropies (not) of the targets, fp32 [N], in nats."""
        packing, scale = Packing.of_segments(packed.segments, packed.ids_T.device), decoder.attention_scale(self.arch)

        def attention(_layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
            return packed_attention(q_THD, k_TKD, v_TKD, packing, scale)

        hidden_TE = decoder.hidden_states(weights.operands, self.arch, packed.ids_T, packed.positions_T, attention)
        return target_logprobs(hidden_TE[packed.rows_N], weights.head, targets)

    def require_parameters(self, params: Mapping[str, Tensor]) -> None:
        """Raise `ModelError` unless names, shapes and dtypes are exactly those of the network."""
        got = {name: (tuple(p.shape), str(p.dtype).removeprefix("torch.")) for name, p in params.items()}
        expected = {name: (shape, self.dtype) for name, shape in self.arch.parameter_shapes().items()}
        for name in expected | got:
            if got.get(name) != expected.get(name):
                do = "Read them with read_parameters(..., dtype of engine.dtype)"
                raise ModelError(
                    message(f"parameter ({name})", "weights must fit the model and the config",
                            got=got.get(name, "nothing"), expected=expected.get(name, "no such parameter"), do=do)
                )  # fmt: skip

    def require_rollout(self, rollout: Rollout) -> None:
        """Raise `ContractError` for another head dtype, or parameters that do not adjust logits as the contract says,
        `InputError` for tokens that do not fit the model.
        """
        contract, adjustments = rollout.sampler_logprobs.contract, rollout.params.adjustments
        if adjustments != contract.adjustments:
            got, expected = adjustments or "nothing", contract.adjustments or "nothing"
            rule, do = "parameters and contract must adjust the same", "Keep the parameters that it was drawn with"
            raise ContractError(message(f"rollout ({rollout.id})", rule, got=got, expected=expected, do=do))
        head_dtype = contract.head_dtype
        if head_dtype != self.head_dtype:
            do = "Use one engine.head_dtype on both sides"
            raise ContractError(
                message(
                    f"rollout ({rollout.id})", "one head on both sides", got=head_dtype, expected=self.head_dtype, do=do
                )
            )
        self.require_ids(f"rollout ({rollout.id})", rollout.prompt_ids, rollout.token_ids)
        require_vocabulary(f"rollout ({rollout.id})", rollout.params, self.arch.vocab_size)

    def require_ids(self, subject: str, prompt: np.ndarray, completion: np.ndarray) -> None:
        """Raise `InputError` unless there are tokens, they fit the context, and all are in the vocabulary."""
        length, limit = len(prompt) + len(completion), self.arch.max_context
        if not (len(prompt) and len(completion) and length <= limit):
            expected = f"at least 1 of each and {limit} in all"
            raise _unfit(subject, "prompt and completion must fit the context", f"{length} tokens", expected)
        ids = np.concatenate((prompt, completion))
        if ids.min() < 0 or ids.max() >= self.arch.vocab_size:
            got, expected = f"{ids.min()} to {ids.max()}", f"0 to {self.arch.vocab_size - 1}"
            raise _unfit(subject, "token ids must be in the vocabulary", got, expected)


def _unfit(subject: str, rule: str, got: object, expected: object) -> InputError:
    do = "Use the tokenizer and the context length of this model"
    return InputError(message(subject, rule, got=got, expected=expected, do=do))
