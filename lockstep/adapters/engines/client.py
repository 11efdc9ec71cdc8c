"""What a client does around an engine that is not the engine's own: how updates are sent, what becomes of its cache.

In: the settings of a spec. Out: `Client`, taken off them; the rest is the engine's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lockstep.errors import InputError, message

CHOICES: Mapping[str, tuple[str, ...]] = {
    "weights": ("reload", "repack", "lost"),
    "prefix_cache": ("reset", "salt", "keep"),
}


@dataclass(frozen=True, slots=True)
class Client:
    """`weights`: ``reload`` sends every update the engine's own way, ``repack`` also has vLLM's CPU build pack its head
    anew (workers/vllm_head.py), ``lost`` sends none (to see what an audit makes of it).

    `prefix_cache`: ``reset`` empties it at every update, ``salt`` gives requests a salt for each version, ``keep`` goes
    on with what older weights wrote.
    """

    weights: str = "reload"
    prefix_cache: str = "reset"

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> tuple[Client, dict[str, Any]]:
        """The client's settings, and all others. Raises `InputError` for a value that is no choice."""
        mine = {name: value for name, value in settings.items() if name in CHOICES}
        for name, value in mine.items():
            if value not in CHOICES[name]:
                expected, do = ", ".join(CHOICES[name]), "Choose one of them"
                raise InputError(message(f"setting ({name})", "no such choice", got=value, expected=expected, do=do))
        return cls(**mine), {name: value for name, value in settings.items() if name not in CHOICES}

    def salt(self, version: int) -> str | None:
        """The salt of requests at a version of the weights."""
        return f"version-{version}" if self.prefix_cache == "salt" else None

    @property
    def said(self) -> dict[str, object]:
        """As settings of a `Statement`."""
        salted = "per_version" if self.prefix_cache == "salt" else "none"
        reset = "at every update" if self.prefix_cache == "reset" else False
        return {"cache_salt": salted, "prefix_cache_reset": reset, "weights": self.weights}
