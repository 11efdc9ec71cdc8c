"""Every fault that is known by name, in the order in which to look.

In: one table a layer. Out: `CATALOGUE` by code, `find`, and what the faults of a layer have in common. Nothing heavy is
imported: the catalogue is read by `lockstep faults` and by the documentation, too.

>>> find("sem01").setting.startswith("`logprobs_mode")
True
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import SequenceMatcher

from lockstep.errors import InputError, message
from lockstep.parity.catalogue import cache, data, numerics, objective, path, semantics, weights
from lockstep.parity.fault import Fault, Layer

_ALL = (
    *semantics.FAULTS,
    *data.FAULTS,
    *weights.FAULTS,
    *cache.FAULTS,
    *path.FAULTS,
    *numerics.FAULTS,
    *objective.FAULTS,
)

CATALOGUE: Mapping[str, Fault] = {fault.code: fault for fault in _ALL}

COMMON: Mapping[Layer, str] = {
    Layer.SEM: "The number means something else. Look here first.",
    Layer.DAT: "They are not the same tokens.",
    Layer.WGT: "They are not the same weights.",
    Layer.CAC: "State has outlived what made it.",
    Layer.PTH: "Another way through the engine, another number.",
    Layer.NUM: "The same formula, rounded otherwise.",
    Layer.OBJ: "The backend is right, what is made of it is not. Look here last.",
}
"""What the faults of a layer have in common, in the order of looking."""

SECTIONS: Mapping[str, str] = {
    "what": "What it does",
    "why_bad": "Why it is bad",
    "looks_like": "What it looks like",
    "inject": "How it is reproduced",
    "mend": "How to mend it",
}
"""The texts of a fault's page by field, with their headings, on the terminal and in the documentation alike."""

SIMILAR = 0.6
"""How much of a code (`difflib`'s ratio) a word must share to be taken for a typing error."""

assert len(CATALOGUE) == len(_ALL), "one fault a code"


def of_layer(layer: Layer) -> tuple[Fault, ...]:
    """The faults of a layer, in code order."""
    return tuple(fault for fault in _ALL if fault.layer is layer)


def find(code: str) -> Fault:
    """The fault with this code, in capitals or not. Raises `InputError` with the nearest codes."""
    word = code.strip().upper()
    fault = CATALOGUE.get(word)
    if fault is None:
        near = _nearest(word)
        choice = f"Did you mean {near[0]}" if len(near) == 1 else f"Did you mean one of {', '.join(near)}"
        raise InputError(
            message(
                f"fault ({code[:40]})",
                "no fault has this code",
                got=repr(code[:40]),
                expected=f"one of {len(CATALOGUE)} codes from {_ALL[0].code} to {_ALL[-1].code}",
                do=choice if near else "`lockstep faults` lists them",
            )
        )
    return fault


def _nearest(word: str) -> list[str]:
    """The codes that are most like a word, all of them if several are equally like it; none if none is."""
    likeness = {code: SequenceMatcher(None, word, code).ratio() for code in CATALOGUE}
    best = max(likeness.values())
    return [code for code, ratio in likeness.items() if ratio == best] if best >= SIMILAR else []
