"""The exception tree, the one form of an error message, and the boundary that names who failed.

Every message reads `subject (id): rule - got X, expected Y. What to do.`
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class LockstepError(Exception):
    """Anything Lockstep reports to a user on purpose; `exit_code` is what the command line returns."""

    exit_code = 2


class InputError(LockstepError, ValueError):
    """A setting, file, prompt or argument that the user gave and can mend."""


class ConfigError(InputError):
    """A run configuration that does not validate."""


class ModelError(InputError):
    """A checkpoint, tokenizer or download that is missing, damaged or of an unknown kind."""


class ContractError(LockstepError, TypeError):
    """Two logprobs of unlike contracts were about to be mixed."""


class GateRefused(LockstepError):
    """A gate did not admit what it was asked about; nothing behind the gate was touched."""

    exit_code = 1


class NumericsError(LockstepError):
    """A number that must be finite or reproducible is not."""

    exit_code = 1


class StageError(LockstepError):
    """Code that is not ours (a reward function, an environment) failed; the cause is chained."""


class StorageError(LockstepError):
    """The run directory cannot be written (disk full, no permission)."""


class EngineDied(LockstepError):
    """The process of an engine has ended; `in_flight` are ids of the rollouts that it owed."""

    def __init__(self, text: str, in_flight: tuple[str, ...] = ()) -> None:
        super().__init__(text)
        self.in_flight = in_flight


class Interrupted(LockstepError):
    """The user asked for a stop; the message says which steps are kept."""

    exit_code = 130


def message(subject: str, rule: str, *, got: object, expected: object, do: str) -> str:
    """Compose the house form of an error message.

    `subject` names the thing and its id, e.g. ``"prompt (3)"``; `do` is a sentence without its full stop.
    """
    return f"{subject}: {rule} - got {got}, expected {expected}. {do}."


@contextmanager
def boundary(who: str) -> Iterator[None]:
    """Run foreign code; whatever it raises comes out as `StageError` naming `who`. The only broad `except`."""
    try:
        yield
    except LockstepError:
        raise
    except (Exception, SystemExit) as cause:
        raise StageError(f"{who}: raised {type(cause).__name__} - {_said(cause)}") from cause


def _said(cause: BaseException) -> str:
    """The words of an exception, whose `__str__` may be as broken as the code that raised it."""
    try:
        return str(cause)
    except Exception:  # noqa: BLE001 - part of the boundary
        return "(its message could not be read)"
