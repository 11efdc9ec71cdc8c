"""`lockstep sample MODEL PROMPT`: stream text, or print completions with their logprobs as JSON."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import Literal

import orjson
from cyclopts import Parameter

from lockstep.cli.progress import ProgressBars
from lockstep.core import Path as TokenPath
from lockstep.core import Rollout, SamplingParams


@Parameter(name="*")
@dataclass(frozen=True)
class Sampling:
    """How to draw tokens."""

    temperature: float = 1.0
    "0 is greedy."
    top_k: int = 0
    "Keep the k most likely tokens; 0 keeps all."
    top_p: float = 1.0
    "Keep the smallest set of tokens with this mass."
    min_p: float = 0.0
    "Keep tokens with at least this fraction of the largest probability."
    max_tokens: int = 128
    "Stop after this many tokens."
    n: int = 1
    "Completions of the prompt."
    seed: int = 0
    "The same seed gives the same tokens."
    stop: tuple[str, ...] = ()
    "Stop before this text; may be given more than once."
    presence_penalty: float = 0.0
    "Taken off the logits of tokens that were drawn already."
    frequency_penalty: float = 0.0
    "Taken off them for each time that they were drawn."
    repetition_penalty: float = 1.0
    "Makes tokens of prompt and completion less likely if over 1, more likely if under 1."
    prompt_logprobs: bool = False
    "With --json: the logprob of each token of the prompt, too."


DEFAULT = Sampling()


def sample(
    model: str,
    prompt: str,
    *,
    sampling: Sampling = DEFAULT,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    raw: bool = False,
    json: bool = False,
) -> int:
    """Stream a completion of PROMPT by MODEL to stdout.

    Parameters
    ----------
    model
        A name from `lockstep models list`, or an HF directory.
    prompt
        The text; `-` reads it from stdin. It becomes one user message if the model has a chat template.
    dtype
        Weights and activations of the forward.
    raw
        Give the prompt to the model as it is, without its chat template.
    json
        Print the rollouts with token ids and logprobs as one JSON document, and nothing else.
    """
    from lockstep.engine import Engine
    from lockstep.models import resolve

    text = sys.stdin.read() if prompt == "-" else prompt
    params = SamplingParams(**asdict(sampling))
    with ProgressBars() as bars:
        directory = resolve(model, bars.update)
    engine = Engine.load(str(directory), dtype=dtype)
    if json:
        rollouts = [_plain(rollout) for rollout in engine.generate(text, params, chat=not raw)]
        print(orjson.dumps(rollouts, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_INDENT_2).decode())
    elif params.n == 1:
        for piece in engine.stream(text, params, chat=not raw):
            print(piece, end="", flush=True)
        print()
    else:
        for i, rollout in enumerate(engine.generate(text, params, chat=not raw)):
            print(f"[{i}] {rollout.text}")
    return 0


def _plain(rollout: Rollout) -> dict[str, object]:
    return {
        "text": rollout.text,
        "finish_reason": rollout.finish_reason,
        "prompt_ids": rollout.prompt_ids,
        "token_ids": rollout.token_ids,
        "prompt_logprobs": rollout.prompt_logprobs.values if rollout.prompt_logprobs is not None else None,
        "logprobs": rollout.sampler_logprobs.values,
        "contract": asdict(rollout.sampler_logprobs.contract),
        "weight_version": rollout.provenance.weight_version,
        "path": [TokenPath(path).name.lower() for path in rollout.provenance.path],
    }
