"""The reward of both trainers, in TRL's signature: is the last integer of the text the right one?

In: completions and the column `answer`. Out: 1.0 or 0.0 for each.
"""

from __future__ import annotations

import re
from typing import Any

INTEGER = re.compile(r"-?\d+")


def exact_integer(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    """A chat's completion is a list of one message, a plain one a string."""
    texts = [one if isinstance(one, str) else one[-1]["content"] for one in completions]
    last = [INTEGER.findall(text)[-1:] for text in texts]
    return [float(found == [right]) for found, right in zip(last, answer, strict=True)]
