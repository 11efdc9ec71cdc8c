"""vLLM as a subject: the real one, in a process and an environment of its own.

In: a model's versions, vLLM's own engine arguments. Out: `Vllm`, a `parity.side.Subject`. What is not given is vLLM's
default, as it is for its users.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from lockstep.adapters.engines.client import Client
from lockstep.adapters.engines.environment import VLLM, python_of
from lockstep.adapters.engines.process import PROTOCOL, Program, Worker
from lockstep.adapters.engines.publisher import Publisher
from lockstep.adapters.engines.wire import drawn_fields, series_of
from lockstep.core import Request
from lockstep.parity.observation import Sample, Statement
from lockstep.parity.side import Capability

VARIABLES = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1"}
ROOM: Mapping[str, Any] = {"max_model_len": 1024}
"""What is set unless a spec says otherwise: memory, and nothing that moves a number."""

START, ASK = 900.0, 300.0


class Vllm:
    """One running vLLM. Use it as a context: leaving it ends the process."""

    def __init__(
        self, publisher: Publisher, settings: Mapping[str, Any], log: Path, announce: Callable[[str], None]
    ) -> None:
        """Starts it, which takes some seconds, and minutes the first time, when its environment is made.

        Raises `StageError` if it cannot be installed or does not start.
        """
        self._publisher, self._version = publisher, publisher.newest
        self._client, arguments = Client.of(settings)
        told = {"model": str(publisher.path(self._version)), "arguments": {**ROOM, **arguments}}
        program = Program("vllm", python_of(*VLLM, announce), PROTOCOL / "vllm_engine.py", told, VARIABLES, START, ASK)
        self._worker = Worker(program, log)
        with ExitStack() as undo:
            undo.push(self._worker)
            announce("vllm: starting")
            self.versions = self._worker.start()
            undo.pop_all()

    def __enter__(self) -> Vllm:
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.close()

    @property
    def can(self) -> frozenset[Capability]:
        return frozenset({"sample", "score", "update", "reset", "seeded"})

    def state(self) -> Statement:
        """Its resolved settings; it has no label for its weights, and none is made up."""
        found = self._ask("state")
        sampling = {"sampling": found["sampling_defaults"]} if found["sampling_defaults"] else {}
        return Statement(f"vllm {self.versions['vllm']}", {**found["settings"], **sampling, **self._client.said})

    def sample(self, requests: Sequence[Request]) -> list[Sample]:
        """Completions with the logprobs as vLLM gives them; None where a series is not whole."""
        salt = self._client.salt(self._version)
        asked = [
            {"prompt_ids": list(request.prompt_ids), "params": drawn_fields(request.params), "salt": salt}
            for request in requests
        ]
        outputs = self._ask("sample", requests=asked)["outputs"]
        return [
            _sample(request, output, index)
            for request, output in zip(requests, outputs, strict=True)
            for index in range(len(output["completions"]))
        ]

    def score(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """Its prompt logprobs of the tokens; NaN where it gives none."""
        sequences = [
            {
                "ids": [*sample.prompt_ids.tolist(), *sample.token_ids.tolist()],
                "count": len(sample.token_ids),
                "temperature": sample.params.temperature if sample.params else 1.0,
                "salt": self._client.salt(self._version),
            }
            for sample in samples
        ]
        return [series_of(values) for values in self._ask("score", sequences=sequences)["series"]]

    def update(self, version: int) -> None:
        """Reload the weights of a version in place, as `collective_rpc("reload_weights")` does."""
        if self._client.weights != "lost":
            remake = self._client.weights == "repack"
            self._ask("update", path=str(self._publisher.path(version)), remake_head=remake)
        self._version = version
        if self._client.prefix_cache == "reset":
            self.reset()

    def reset(self) -> None:
        """Empty the prefix cache."""
        self._ask("reset")

    def _ask(self, op: str, **question: Any) -> dict[str, Any]:
        return self._worker.ask(op=op, **question)


def _sample(request: Request, output: Mapping[str, Any], index: int) -> Sample:
    one = output["completions"][index]
    return Sample(
        id=f"{request.id}/{index}",
        prompt_ids=np.array(request.prompt_ids, np.int32),
        token_ids=np.array(one["token_ids"], np.int32),
        sampler=series_of(one["logprobs"]) if one["logprobs"] else None,
        params=request.params,
        group=request.id,
        drawn_prompt_ids=np.array(output["prompt_ids"], np.int32),
        num_cached=output["cached"],
        finish_reason=one["finish_reason"] or "",
    )
