"""What vLLM 0.32's CPU build leaves out of a reload: the packed head of a model whose head is its embedding.

In: a vLLM worker, which takes this class as its extension. Out: `remake_head`, for `collective_rpc`.

`reload_weights` puts the new embedding in place. The head's product goes on with the copy that was packed for it when
the model was first loaded (`layer.cpu_linear`, `vllm/model_executor/layers/utils.py`): logits come from an old head.
"""

from __future__ import annotations

from typing import Any


class Head:
    """An extension of vLLM's worker."""

    model_runner: Any

    def remake_head(self) -> None:
        """Pack the head again from the weights that are there."""
        head = self.model_runner.get_model().lm_head
        head.quant_method.process_weights_after_loading(head)
