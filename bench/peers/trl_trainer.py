"""TRL's `GRPOTrainer` on the CPU as a contestant, held between two steps by a callback.

In: the prompts of every step in order, settings, then what pacer.py takes. Out: what it gives. A step is what lies
between `on_step_begin` and `on_step_end`: rollout, reward, forward and backward, optimizer. Its logging is outside of
the clock.

Set for speed where the algorithm stays the same: the weights in the dtype that is asked for, microbatches of the size
that was the fastest, all of one rollout (so that TRL needs no second forward for old logprobs), no reference model, no
gradient checkpointing, nothing saved or reported.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import datasets  # pyright: ignore[reportMissingImports]
import torch
import transformers
import trl  # pyright: ignore[reportMissingImports]
from pacer import Pacer
from protocol import Channel
from reward import exact_integer

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


class Counted:
    """The reward function, and what it saw last."""

    __name__ = "exact_integer"

    def __init__(self) -> None:
        self.rewards: list[float] = []
        self.lengths: list[int] = []

    def __call__(self, completions: list[Any], completion_ids: list[list[int]], **columns: Any) -> list[float]:
        self.rewards = exact_integer(completions, **columns)
        self.lengths = [len(ids) for ids in completion_ids]
        return self.rewards


class Held(transformers.TrainerCallback):
    """Lets the loop go on when it is asked to."""

    def __init__(self, pacer: Pacer, counted: Counted) -> None:
        self._pacer, self._counted = pacer, counted

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Wait for the word."""
        self._pacer.wait()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Say what came of it."""
        rewards, lengths = self._counted.rewards, self._counted.lengths
        mean = sum(lengths) / len(lengths)
        self._pacer.done(reward=sum(rewards) / len(rewards), mean_tokens=mean, completions=len(rewards))


def main() -> None:
    """Run until there is nothing more to do."""
    channel = Channel()
    settings = channel.asked()
    if settings is None:
        return
    with tempfile.TemporaryDirectory(prefix="lockstep-bench-") as directory:
        trainer, counted = _trainer(settings, directory)
        pacer = Pacer(channel, lambda path: _save(trainer, settings["model"], Path(path)))
        trainer.add_callback(Held(pacer, counted))
        channel.answer(versions={module.__name__: module.__version__ for module in (trl, transformers, torch)})
        trainer.train()
        pacer.wait()  # the weights of the last step may still be asked for


def _trainer(settings: dict[str, Any], directory: str) -> tuple[Any, Counted]:
    """TRL's trainer and its reward. `settings["weights"]`: bfloat16, or float32 with a forward in bf16 autocast."""
    torch.set_num_threads(settings["threads"])
    counted = Counted()
    full = settings["weights"] == "float32"
    model = transformers.AutoModelForCausalLM.from_pretrained(
        settings["model"], dtype=torch.float32 if full else torch.bfloat16, attn_implementation="sdpa"
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(settings["model"], padding_side="left")
    rows = [{"prompt": prompt, "answer": answer} for prompt, answer in settings["problems"]]
    completions = settings["num_prompts"] * settings["num_generations"]
    config = trl.GRPOConfig(
        output_dir=directory, use_cpu=True, bf16=full, seed=settings["seed"],
        per_device_train_batch_size=settings["micro_batch"],
        gradient_accumulation_steps=completions // settings["micro_batch"], num_generations=settings["num_generations"],
        max_completion_length=settings["max_tokens"], max_steps=len(rows) // settings["num_prompts"],
        temperature=1.0, top_p=1.0, top_k=0, shuffle_dataset=False,
        loss_type="grpo", beta=0.0, epsilon=0.2, num_iterations=1, scale_rewards="group",
        learning_rate=settings["lr"], lr_scheduler_type="constant", adam_beta1=0.9, adam_beta2=0.999,
        weight_decay=0.0, max_grad_norm=1.0, optim="adamw_torch_fused", gradient_checkpointing=False,
        save_strategy="no", report_to="none", logging_steps=1000, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = trl.GRPOTrainer(
        model=model, reward_funcs=counted, args=config, processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_list(rows),
    )  # fmt: skip
    return trainer, counted


def _save(trainer: Any, source: str, path: Path) -> None:
    """An HF directory in bf16, with the tokenizer's files as they were."""
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in trainer.model.state_dict().items()}
    trainer.model.save_pretrained(path, state_dict=weights)
    for name in TOKENIZER:
        if (file := Path(source) / name).exists():
            shutil.copyfile(file, path / name)


if __name__ == "__main__":
    main()
