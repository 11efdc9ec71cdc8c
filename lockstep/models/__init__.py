"""Models: token ids to logits. One definition, used by engine and trainer.

In: a name or an HF directory. Out: a `Model`: architecture and tokenizer. Its weights: `checkpoint.read_parameters`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lockstep.errors import ModelError, message
from lockstep.models.architecture import Architecture
from lockstep.models.directory import read_json
from lockstep.models.pull import Progress, resolve
from lockstep.models.tokenizer import Tokenizer

__all__ = ["Architecture", "Model", "Tokenizer", "load", "resolve"]


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """Where a checkpoint lies and what it is; its weights are read apart."""

    path: Path
    arch: Architecture
    tokenizer: Tokenizer


def load(name_or_path: str, progress: Progress | None = None) -> Model:
    """A model by the name it has in the catalogue (pulled or built if need be), or by its directory.

    Raises `ModelError` for anything unknown, damaged, or whose tokenizer does not fit the network.
    """
    path = resolve(name_or_path, progress)
    arch = Architecture.from_hf(read_json(path / "config.json"))
    tokenizer = Tokenizer.from_directory(path)
    largest = max((tokenizer.vocab_size - 1, *tokenizer.eos_ids))
    if largest >= arch.vocab_size:
        do = "Put the tokenizer beside the weights it was trained with"
        expected = f"ids below {arch.vocab_size} (vocab_size of config.json)"
        raise ModelError(
            message(f"model ({path})", "the tokenizer must fit the network", got=largest, expected=expected, do=do)
        )
    return Model(path, arch, tokenizer)
