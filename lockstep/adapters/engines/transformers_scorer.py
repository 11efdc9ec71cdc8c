"""transformers as a scorer: a plain forward, logits over the temperature, log softmax over all tokens.

In: a model's versions. Out: `Transformers`, which scores and takes weights. It knows neither truncation nor penalties:
that is what most trainers do, and part of what an audit is there to see.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from lockstep.adapters.engines.publisher import Publisher
from lockstep.errors import InputError, message
from lockstep.models.checkpoint import to_hf
from lockstep.parity.observation import Sample, Statement
from lockstep.parity.side import Capability


class Transformers:
    """`settings`: ``dtype`` (bfloat16, float32), ``attn_implementation`` (sdpa, eager)."""

    def __init__(self, publisher: Publisher, settings: Mapping[str, Any]) -> None:
        """Raises `InputError` without transformers, or for settings that it does not have."""
        try:
            import transformers
        except ImportError as cause:
            do = "Install transformers >= 5"
            raise InputError(
                message("engine (transformers)", "it must be installed", got=cause, expected="transformers", do=do)
            ) from None
        unknown = set(settings) - {"dtype", "attn_implementation"}
        if unknown:
            expected, do = "dtype, attn_implementation", "Leave it out"
            raise InputError(
                message("engine (transformers)", "no such setting", got=min(unknown), expected=expected, do=do)
            )
        self._publisher = publisher
        self._settings = {"dtype": "bfloat16", "attn_implementation": "sdpa", **settings}
        self._name = f"transformers {transformers.__version__}"
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            str(publisher.path(publisher.newest)),
            dtype=getattr(torch, str(self._settings["dtype"])),
            attn_implementation=str(self._settings["attn_implementation"]),
        ).eval()

    def __enter__(self) -> Transformers:
        return self

    def __exit__(self, *_: object) -> None:
        del self._model

    @property
    def can(self) -> frozenset[Capability]:
        return frozenset({"score", "update"})

    def state(self) -> Statement:
        """Its settings."""
        return Statement(self._name, {**self._settings, "head_dtype": self._settings["dtype"]})

    def score(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """Log softmax of logits / T at the tokens, one sequence after the other (no padding)."""
        return [self._series(sample) for sample in samples]

    def update(self, version: int) -> None:
        """Put the weights of a version in place."""
        held = self._publisher.held()[version]
        state = to_hf(held, self._publisher.model.arch)
        missing, unexpected = self._model.load_state_dict(state, strict=False)
        wrong = [*unexpected, *(name for name in missing if "lm_head" not in name)]
        assert not wrong, f"names of the checkpoint are those of the network: {wrong[:3]}"

    def _series(self, sample: Sample) -> np.ndarray:
        ids = torch.from_numpy(np.concatenate([sample.prompt_ids, sample.token_ids]).astype(np.int64))
        temperature = (sample.params.temperature if sample.params else 1.0) or 1.0
        with torch.inference_mode():
            logits_TV = self._model(input_ids=ids[None, :-1]).logits[0, len(sample.prompt_ids) - 1 :]
            logprobs_TV = torch.log_softmax(logits_TV.float() / temperature, dim=-1)
            return logprobs_TV.gather(1, ids[len(sample.prompt_ids) :, None])[:, 0].numpy()
