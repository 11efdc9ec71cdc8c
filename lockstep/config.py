"""One frozen configuration tree. Unknown keys are errors that name the nearest key.

In: TOML files and dotted overrides. Out: a `RunConfig`, which is written back resolved, so that no default is inherited
unseen. The only module that reads environment variables.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from lockstep.errors import ConfigError, message
from lockstep.toml_tree import merge, read_override, read_toml, to_toml

__all__ = ["RunConfig", "Section", "cache_dir", "kernels", "known_keys", "load", "parse", "to_toml"]


def cache_dir() -> Path:
    """Where downloaded and converted models are kept: `$LOCKSTEP_HOME`, else `~/.cache/lockstep`."""
    return Path(os.environ.get("LOCKSTEP_HOME") or Path.home() / ".cache" / "lockstep")


def kernels() -> str:
    """`$LOCKSTEP_KERNELS`: auto (C++ where it can be had), native (nothing else) or reference (PyTorch's operators)."""
    return os.environ.get("LOCKSTEP_KERNELS") or "auto"


class Section(BaseModel):
    """A frozen table of the file; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TaskConfig(Section):
    """Where prompts with known answers come from."""

    name: str = Field(default="addition", description="a built-in task (addition, reverse) or a .jsonl / .parquet file")
    low: int = Field(default=1, description="addition: smallest operand")
    high: int = Field(default=20, description="addition: largest operand")
    length: int = Field(default=4, ge=1, description="reverse: letters in a word")
    letters: int = Field(default=8, ge=2, le=26, description="reverse: size of the alphabet")
    held_out: float = Field(default=0.2, gt=0, lt=1, description="fraction of the problems never trained on")
    reward: str = Field(default="", description="dotted path of a reward function; empty: the task's own check")


class SamplingConfig(Section):
    """How rollouts are drawn. Every field is sent to the engine; none is inherited from a model's own defaults."""

    temperature: float = Field(default=1.0, ge=1e-3, description="at least 0.001; greedy rollouts carry no signal")
    top_k: int = Field(default=0, ge=0, description="0 keeps every token")
    top_p: float = Field(default=1.0, gt=0, le=1)
    min_p: float = Field(default=0.0, ge=0, le=1)
    max_tokens: int = Field(default=16, ge=1)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2, description="off the logits of tokens already drawn")
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2, description="off them for each time they were drawn")
    repetition_penalty: float = Field(
        default=1.0, gt=0, le=2, description="over 1: tokens of prompt and completion become less likely; under 1: more"
    )


class EngineConfig(Section):
    """The rollout engine. The trainer's forward follows `dtype` and `head_dtype`: both sides are one computation."""

    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    head_dtype: Literal["float32", "model"] = Field(default="float32", description="dtype of the logits' product")
    kv_cache_gb: float = Field(default=0.5, gt=0)
    page_size: int = Field(default=16, ge=16, multiple_of=16, description="tokens in a page of the KV cache")
    max_tokens_per_step: int = Field(
        default=2048, ge=8, description="token budget of one engine step (prefill is chunked)"
    )
    max_sequences: int = Field(default=256, ge=1, description="sequences decoded together")
    max_context: int = Field(default=0, ge=0, description="prompt + completion; 0: what the model allows")


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(Section):
    """AdamW over fp32 master weights."""

    lr: float = Field(default=1e-5, ge=0, description="learning rate after the warm-up")
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0, description="of matrices; norms and biases have none")
    max_grad_norm: float = Field(default=1.0, gt=0, description="global norm to which gradients are clipped")
    warmup_steps: int = Field(default=0, ge=0, description="steps over which the rate rises linearly")


class LossConfig(Section):
    """The objective, from the table in `train/losses.py`."""

    type: Literal["grpo", "gspo", "ppo", "reinforce", "cispo"] = "grpo"
    advantage: Literal["group", "group_centered", "leave_one_out"] = "group"
    epsilon_low: float = Field(default=0.2, ge=0)
    epsilon_high: float = Field(default=0.2, ge=0)
    beta: float = Field(
        default=0.0, ge=0, description="weight of the k3 KL to the initial weights; 0 keeps no reference model"
    )
    normalize: Literal["token", "sequence"] = Field(
        default="token", description="mean over tokens, or of sequence means"
    )


class TrainConfig(Section):
    """How a batch goes through the trainer."""

    num_minibatches: int = Field(default=1, ge=1, description="optimizer steps per batch of rollouts")
    max_tokens_per_microbatch: int = Field(default=2048, ge=8, description="bounds activation memory")
    checkpoint_every: int = Field(default=20, ge=1)
    keep_checkpoints: int = Field(default=1, ge=1)


class WarmStartConfig(Section):
    """Supervised steps on the training problems before RL; 0 steps: none."""

    steps: int = Field(default=0, ge=0)
    batch: int = Field(default=64, ge=1)
    lr: float = Field(default=1e-3, gt=0)


class ParityConfig(Section):
    """The gate before each optimizer step. There is no tolerance on-policy: the bar is equality of bits."""

    gate: bool = Field(default=True, description="false only measures; the run is then marked as not gated")
    audit: bool = Field(default=True, description="look at every step for faults, and for the cause of what moves")


class CorrectionsConfig(Section):
    """What is done about stale tokens before the loss, from the table in `train/corrections.py`."""

    type: Literal["none", "token_tis", "sequence_tis", "masked", "geometric", "tv_mask"] = "none"
    cap: float = Field(default=0.0, ge=0, le=1e6, description="largest *_tis weight (0: 2), tv_mask change (0: 0.2)")
    low: float = Field(default=0.5, ge=0, le=1, description="of masked and geometric: smallest ratio kept")
    high: float = Field(default=5.0, ge=1, le=1e6, description="of masked and geometric: largest ratio kept")


class PipelineConfig(Section):
    """How rollouts and training interleave."""

    max_lag: int = Field(default=0, ge=0, le=64, description="steps that a token may be behind when it is trained on")
    executor: Literal["inline", "processes"] = Field(
        default="inline", description="inline: engine and trainer take turns; processes: the engine has its own"
    )
    kv: Literal["keep", "salt", "recompute"] = Field(
        default="salt", description="what new weights do to keys of old ones: docs/asynchrony.md"
    )
    engine_threads: int = Field(default=0, ge=0, description="processes: threads of the engine; 0: half of the cores")


class EvalConfig(Section):
    """Greedy accuracy on the held-out problems."""

    max_tasks: int = Field(default=0, ge=0, description="0: all held-out problems")
    every: int = Field(
        default=0, ge=0, description="steps between evaluations; 0: before the first and after the last step only"
    )


class RunConfig(Section):
    """Everything that decides a run."""

    model: str = Field(default="smollm2", description="a name from `lockstep models list`, or an HF directory")
    task: TaskConfig = TaskConfig()
    max_steps: int = Field(default=40, ge=1, description="batches of rollouts to train on")
    num_prompts_per_step: int = Field(default=8, ge=1, description="problems in a batch")
    num_generations: int = Field(default=8, ge=2, description="rollouts of each problem; they form its group")
    sampling: SamplingConfig = SamplingConfig()
    engine: EngineConfig = EngineConfig()
    optim: OptimConfig = OptimConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    warm_start: WarmStartConfig = WarmStartConfig()
    parity: ParityConfig = ParityConfig()
    corrections: CorrectionsConfig = CorrectionsConfig()
    pipeline: PipelineConfig = PipelineConfig()
    eval: EvalConfig = EvalConfig()
    seed: int = Field(default=0, ge=0, lt=2**63, description="keys every random draw, with the request and position")
    device: str = Field(default="cpu", description="what torch calls it: cpu, cuda, cuda:1")
    threads: int = Field(default=0, ge=0, description="of torch; 0: its default. 1 is faster for tiny models")
    output_dir: str = Field(default="", description="empty: runs/<name of the first config file>")
    report_to: tuple[Literal["html"], ...] = ("html",)

    @field_validator("corrections")
    @classmethod
    def _behind_the_gate(cls, found: CorrectionsConfig, known: ValidationInfo) -> CorrectionsConfig:
        if found.type == "none" or getattr(known.data.get("parity"), "gate", True):
            return found
        raise PydanticCustomError("gate", "they must not hide a broken backend: set parity.gate = true, or type = none")


def load(files: Sequence[Path], overrides: Iterable[str] = ()) -> RunConfig:
    """Merge TOML files (later wins), then `a.b=value` overrides, and validate.

    Raises `ConfigError` for unreadable files, TOML errors, unknown keys and values out of range.
    """
    tree: dict[str, Any] = {}
    for file in files:
        merge(tree, read_toml(file))
    for override in overrides:
        merge(tree, read_override(override))
    return parse(tree)


def parse(tree: Mapping[str, Any]) -> RunConfig:
    """Validate a mapping; all problems are reported in one `ConfigError`."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as failure:
        raise ConfigError("\n".join(_explain(error) for error in failure.errors())) from None


def known_keys(section: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """Every dotted key of the tree, in the order of the definition."""
    keys: list[str] = []
    for name, info in section.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys += known_keys(kind, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def _explain(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] != "extra_forbidden":
        return message(
            f"config ({key})", error["msg"], got=repr(error["input"]), expected=_describe(key), do="Change it"
        )
    near = difflib.get_close_matches(key, known_keys(), n=1) or _by_last_part(key)
    do = f"Did you mean {near[0]}" if near else "`lockstep train --keys` lists every key"
    return message(f"config ({key})", "unknown key", got=key, expected="a key of the schema", do=do)


def _by_last_part(key: str) -> list[str]:
    """Keys of which only the table is missing or wrong: `lr` is `optim.lr`."""
    names = {known.rsplit(".", 1)[-1]: known for known in known_keys()}
    near = difflib.get_close_matches(key.rsplit(".", 1)[-1], names, n=1)
    return [names[name] for name in near]


def _describe(key: str) -> str:
    section: Any = RunConfig
    info = None
    for part in key.split("."):
        info = section.model_fields.get(part) if hasattr(section, "model_fields") else None
        section = info.annotation if info else None
    return (info.description if info else None) or "a value of the right type"
