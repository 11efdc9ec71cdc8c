"""The check of a completion that must be its answer and nothing else.

In: a task with an answer, a text. Out: a `Verdict`.
"""

from __future__ import annotations

from dataclasses import dataclass

from lockstep.core import Task, Verdict


@dataclass(frozen=True, slots=True)
class Exact:
    """The whole text, white space around it aside, is the answer.

    A pass guarantees equality code point by code point: no case folding, no Unicode normalisation. White space around
    the answer is set aside too. A task without an answer is `abstain`, never `fail`.
    """

    name: str = "exact@1"

    def check(self, task: Task, text: str) -> Verdict:
        """Pass (``equal``), fail (``unequal``) or abstain (``no_answer``); the witness is the stripped text."""
        if task.answer is None:
            return Verdict("abstain", "no_answer", self.name)
        found = text.strip()
        start = len(text) - len(text.lstrip())
        passed = found == task.answer.strip()
        return Verdict(
            "pass" if passed else "fail",
            "equal" if passed else "unequal",
            self.name,
            witness=found,
            span=(start, start + len(found)),
        )
