"""An OpenAI-compatible endpoint as a subject: completions of token ids, with token ids and logprobs in the answer.

In: an address, a model's versions. Out: `Endpoint`. It takes `prompt` as token ids and must return `token_ids` with
`logprobs` (vLLM's `return_token_ids`); an endpoint that gives text alone is refused, for text does not say which tokens
were drawn.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lockstep.adapters.engines.publisher import Publisher
from lockstep.adapters.engines.wire import drawn_fields, series_of
from lockstep.core import Request
from lockstep.errors import InputError, StageError, message
from lockstep.parity.observation import Sample, Statement
from lockstep.parity.side import CannotAsk, Capability

LIMIT = 120.0
"""Seconds for an answer."""

MOST = 64 << 20
"""Bytes of an answer that are read."""


class Endpoint:
    """Settings: ``model`` (its name there; the only one it serves if not given), ``timeout`` in seconds."""

    def __init__(self, publisher: Publisher, address: str, settings: Mapping[str, Any]) -> None:
        """Raises `InputError` for an address or setting that cannot be used, `StageError` if nobody answers."""
        unknown = set(settings) - {"model", "timeout"}
        if unknown or not address.startswith(("http://", "https://")):
            got = f"{min(unknown)}" if unknown else address
            expected = "settings model and timeout" if unknown else "http://HOST:PORT/v1 or https://..."
            do = "See docs/auditor.md"
            raise InputError(message(f"endpoint ({address})", "not usable", got=got, expected=expected, do=do))
        self._publisher, self._base = publisher, address.rstrip("/")
        self._limit = float(settings.get("timeout", LIMIT))
        self._model = str(settings.get("model") or self._only_model())

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        """It is not ours to end."""

    @property
    def can(self) -> frozenset[Capability]:
        return frozenset({"sample", "seeded"})

    def state(self) -> Statement:
        """Its name; an endpoint says nothing of its settings."""
        return Statement(f"endpoint {self._model}", {})

    def sample(self, requests: Sequence[Request]) -> list[Sample]:
        """Completions, request by request. Raises `InputError` if it returns no token ids or no logprobs."""
        return [sample for request in requests for sample in self._drawn(request)]

    def score(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """It is asked for what it draws, no more."""
        raise CannotAsk(f"endpoint ({self._base}): {len(samples)} samples cannot be scored there")

    def update(self, version: int) -> None:
        """Its weights are another's business."""
        raise CannotAsk(f"endpoint ({self._base}): version {version} cannot be sent; use `--steps 1`")

    def reset(self) -> None:
        """So is its cache."""
        raise CannotAsk(f"endpoint ({self._base}): its prefix cache cannot be emptied from here")

    def _drawn(self, request: Request) -> list[Sample]:
        body = {"model": self._model, "prompt": list(request.prompt_ids), "logprobs": 0, "return_token_ids": True}
        answer = self._post("/completions", {**body, **drawn_fields(request.params)})
        choices = answer.get("choices")
        if not isinstance(choices, list) or len(choices) != request.params.n:
            got = f"{len(choices)} choices" if isinstance(choices, list) else "none"
            raise self._unusable("it returns the completions asked for", got, f"{request.params.n} choices")
        return [self._sample(request, choice, i) for i, choice in enumerate(choices)]

    def _sample(self, request: Request, choice: Any, index: int) -> Sample:
        ids = choice.get("token_ids") if isinstance(choice, dict) else None
        if not isinstance(ids, list) or not all(isinstance(i, int) for i in ids):
            raise self._unusable("it returns the ids of the drawn tokens", "none", "`token_ids` in each choice")
        logprobs = choice.get("logprobs")
        values = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
        if not isinstance(values, list) or not values:
            raise self._unusable("it returns the logprobs of the drawn tokens", "none", "`token_logprobs`")
        prompt = choice.get("prompt_token_ids")
        return Sample(
            id=f"{request.id}/{index}",
            prompt_ids=np.array(request.prompt_ids, np.int32),
            token_ids=np.array(ids, np.int32),
            sampler=series_of(values),
            params=request.params,
            group=request.id,
            drawn_prompt_ids=np.array(prompt, np.int32) if isinstance(prompt, list) else None,
            finish_reason=str(choice.get("finish_reason") or ""),
        )

    def _only_model(self) -> str:
        served = self._get("/models").get("data")
        names = [str(one.get("id")) for one in served if isinstance(one, dict)] if isinstance(served, list) else []
        if len(names) != 1:
            raise self._unusable("it serves one model, or `model=` names it", ", ".join(names) or "none", "one")
        return names[0]

    def _get(self, path: str) -> dict[str, Any]:
        return self._asked(urllib.request.Request(self._base + path))

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        return self._asked(urllib.request.Request(self._base + path, json.dumps(body).encode(), headers))

    def _asked(self, request: urllib.request.Request) -> dict[str, Any]:
        """The answer as an object. Raises `StageError` for none, none in time, or nonsense."""
        try:
            with urllib.request.urlopen(request, timeout=self._limit) as answer:
                found = json.loads(answer.read(MOST))
        except urllib.error.HTTPError as refused:
            words = refused.read(500).decode("utf-8", "replace")
            raise self._failed(f"{refused.code}: {words}", "200") from None
        except (OSError, ValueError) as cause:  # no connection, no answer in time, no JSON
            raise self._failed(cause, f"JSON within {self._limit:g} s") from None
        if not isinstance(found, dict):
            raise self._failed(type(found).__name__, "a JSON object")
        return found

    def _failed(self, got: object, expected: str) -> StageError:
        do = "Look at its log"
        return StageError(message(f"endpoint ({self._base})", "it must answer", got=got, expected=expected, do=do))

    def _unusable(self, rule: str, got: str, expected: str) -> InputError:
        do = "Audit an engine that gives them (vLLM >= 0.10 does), or its own logs with `lockstep doctor`"
        return InputError(message(f"endpoint ({self._base})", rule, got=got, expected=expected, do=do))
