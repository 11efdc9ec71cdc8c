"""The command line: `lockstep train | sample | models | prove | parity | replay | faults | doctor`.

In: arguments. Out: text for people on the terminal, results on stdout, an exit code: 0 pass, 1 a gate refused, 2 usage
or input, 130 interrupted. Commands are imported when they are called, so that `--help` imports no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter

from lockstep import __version__
from lockstep.errors import LockstepError

app = App(
    name="lockstep",
    help="RL post-training in which the engine's logprobs are, bit for bit, the trainer's.",
    version=f"lockstep {__version__}",
    result_action="return_value",
    default_parameter=Parameter(negative=(), show_default=lambda value: str(value) if value else None),
)
app.command("lockstep.cli.train:train", name="train", help="Run reinforcement learning from a recipe.")
app.command("lockstep.cli.sample:sample", name="sample", help="Stream a completion of a prompt.")
app.command("lockstep.cli.models:models", name="models", help="List, pull and locate models.")
app.command("lockstep.cli.prove:prove", name="prove", help="Compare engine and trainer, by thousands of schedules.")
app.command("lockstep.cli.parity:parity", name="parity", help="Compare two engines, and name what makes them differ.")
app.command("lockstep.cli.replay:replay", name="replay", help="Execute steps of a run again, and compare every bit.")
app.command("lockstep.cli.qualify:qualify", name="qualify", help="Find the settings that make a new engine agree.")
app.command("lockstep.cli.faults:faults", name="faults", help="List the faults that have a name, and show one.")
app.command("lockstep.cli.doctor:doctor", name="doctor", help="Look at this machine, or at a run, ours or another's.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and leave the process with its exit code; a user's mistake is one message, never a traceback."""
    sys.exit(_run(list(sys.argv[1:] if arguments is None else arguments)))


def _run(arguments: list[str]) -> int:
    try:
        if arguments[:1] == ["train"]:
            from lockstep.cli.overrides import fold

            arguments = fold(arguments)
        result = app(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        print(f"lockstep: {error} See `lockstep --help` or `lockstep COMMAND --help`.", file=sys.stderr)
        return 2
    except LockstepError as error:
        print(f"lockstep: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("lockstep: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away: nothing is left to say
        sys.stdout = None  # type: ignore[assignment]
        return 0
    return result if isinstance(result, int) else 0
