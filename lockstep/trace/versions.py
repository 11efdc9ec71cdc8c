"""Which weights a run had after which step, as far as it says so: its metrics, its checkpoints.

In: lines of metrics.jsonl; the checkpoints' folder. Out: `WeightVersion`s by step. No weights are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from lockstep.weight_update import WeightVersion


def published(lines: Sequence[Mapping[str, Any]]) -> dict[int, WeightVersion]:
    """What each step published; steps whose line says nothing of it are left out. Raises `InputError` for no digest."""
    told = [line for line in lines if line.get("weight_version") is not None and line.get("weight_digest") is not None]
    return {line["step"]: WeightVersion(line["weight_version"], line["weight_digest"]) for line in told}


def saved(checkpoints: Path) -> dict[int, WeightVersion]:
    """What each checkpoint says that it holds: the only word of the weights that a warm start left (step 0).

    A state that is damaged says nothing.
    """
    found = {}
    for file in sorted(checkpoints.glob("step_*/state.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            state = orjson.loads(file.read_bytes())
            found[int(state["step"])] = WeightVersion(**state["version"])
    return found
