"""The gate before the optimizer step: on-policy, every bit of every logprob agrees, or the step is not taken.

In: what a comparison found about one proposal. Out: a `Decision` about that proposal and no other.

It fails closed. It admits one case (status ``equal``, tokens compared, none differing, largest distance 0.0) and
rejects all others, whether or not somebody thought of them: an exception, an unknown status, figures of another type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from lockstep.core import Decision
from lockstep.errors import Interrupted, LockstepError, boundary


class ParityEvidence(Protocol):
    """What the gate must be told; `parity.ParityResult` is one. `str()` of it says in words what was found."""

    @property
    def status(self) -> str:
        """``equal``, or what else it is."""
        ...

    @property
    def num_tokens(self) -> int:
        """Tokens compared."""
        ...

    @property
    def num_differing(self) -> int:
        """Tokens of which a bit differs."""
        ...

    @property
    def max(self) -> float:
        """Largest distance, in nats."""
        ...

    def evidence(self) -> Mapping[str, Any]:
        """Plain values for the record."""
        ...


class ParitySettings(Protocol):
    """The `[parity]` table of the configuration."""

    @property
    def gate(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class ParityGate:
    """With `settings.gate` false it only measures: everything is admitted, and the reason says so."""

    settings: ParitySettings

    def decide(self, subject: str, found: ParityEvidence, *, num_tokens: int | None = None) -> Decision:
        """Admit or reject the proposal whose id is `subject`. Never raises for what it is given.

        `num_tokens`, if given, is how many tokens the step would train on: all of them must have been compared.
        """
        return self.ask(subject, lambda: found, num_tokens=num_tokens)

    def ask(self, subject: str, measure: Callable[[], ParityEvidence], *, num_tokens: int | None = None) -> Decision:
        """As `decide`, for a comparison that is yet to be made and may itself raise (unlike contracts)."""
        evidence: dict[str, Any] = {}
        summary = reason = ""
        try:
            with boundary("parity gate"):
                found = measure()
                evidence = dict(found.evidence())
                summary, reason = str(found), _objection(found, num_tokens)
        except Interrupted:
            raise
        except LockstepError as failure:
            reason = str(failure)
            evidence = {**evidence, "error": type(failure.__cause__ or failure).__name__, "finding": reason}
        if not subject:
            reason = reason or "a decision is about one proposal, which has an id"
        if self.settings.gate is False:
            return Decision("admit", subject, f"not gated: {reason or 'parity holds'}", evidence)
        if reason:
            return Decision("reject", subject, reason, evidence)
        return Decision("admit", subject, summary, evidence)


def _objection(found: ParityEvidence, num_tokens: int | None) -> str:
    """Why `found` is not parity; empty if it is. Types are compared too, for NaN and None must not slip through."""
    if found.status != "equal":
        return str(found) or f"status {found.status}"
    if type(found.num_tokens) is not int or found.num_tokens <= 0:
        return f"no tokens were compared ({found.num_tokens})"
    if num_tokens is not None and found.num_tokens != num_tokens:
        return f"{found.num_tokens} tokens were compared, but the step trains on {num_tokens}"
    if type(found.num_differing) is not int or found.num_differing != 0:
        return f"{found.num_differing} tokens differ"
    if type(found.max) is not float or found.max != 0.0:
        return f"logprobs differ by up to {found.max}"
    return ""
