"""`lockstep train`: a run from a recipe, with a live view, and a summary as its last word."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import orjson
from cyclopts import Parameter
from rich.console import Console

from lockstep import config as configuration
from lockstep.config import RunConfig
from lockstep.errors import InputError, message
from lockstep.trace import Observer, Observers, RunDirectory


@Parameter(name="*")
@dataclass(frozen=True)
class Mode:
    """How to run."""

    resume: bool = False
    "Go on with the run in output_dir from its last checkpoint."
    fresh: bool = False
    "Move a run that is in output_dir aside (to NAME.1, NAME.2, ...) and start anew."
    dry_run: bool = False
    "Check everything, print the resolved configuration, and run nothing."
    json: bool = False
    "Print the summary as JSON on stdout, and nothing else."
    plain: bool = False
    "One line a step instead of the live view."
    profile: bool = False
    "Show where the time of three steps went, by stage and by operator."
    keys: bool = False
    "List every configuration key."


DEFAULT = Mode()


def train(
    *overrides: str,
    config: Annotated[tuple[Path, ...], Parameter(name=["--config", "-c"], negative=())] = (),
    mode: Mode = DEFAULT,
) -> int:
    """Run reinforcement learning: sample, check parity, step, repeat.

    Any configuration key is an option too: `--optim.lr 1e-5`, or `optim.lr=1e-5`.

    Parameters
    ----------
    overrides
        KEY=VALUE; later ones win.
    config
        A TOML file; may be given more than once, later ones win.
    """
    if mode.keys:
        print("\n".join(configuration.known_keys()))
        return 0
    resolved = configuration.load(config, overrides)
    directory = Path(resolved.output_dir or _default_directory(resolved, config))
    if mode.dry_run:
        return _dry_run(resolved, directory)
    if mode.resume and mode.fresh:
        raise InputError(
            message("train", "a run is continued or begun", got="--resume --fresh", expected="one", do="Drop one")
        )
    if mode.fresh:
        _move_aside(directory)
    return _train(resolved, directory, mode)


def _train(config: RunConfig, directory: Path, mode: Mode) -> int:
    from lockstep.cli.progress import ProgressBars
    from lockstep.dashboard import live, report
    from lockstep.dashboard.profile import ProfileObserver

    with RunDirectory.start(directory, config, resume=mode.resume) as run:
        from lockstep.pipeline import Loop, assemble  # torch, only when it is clear that there is something to do

        with ProgressBars(silent=mode.json) as bars:
            parts = assemble(config, bars.update)
        console = Console(stderr=mode.json)
        with live.view(console, plain=mode.plain, silent=mode.json) as view:
            page = report.ReportObserver(run, parts.model.tokenizer.decode)
            observers: list[Observer] = [page, view] if "html" in config.report_to else [view]
            if mode.profile:
                observers.append(ProfileObserver(console))
            summary = Loop(parts, run, Observers(observers)).run()
    if mode.json:
        sys.stdout.write(orjson.dumps(summary, option=orjson.OPT_INDENT_2).decode() + "\n")
    return 0


def _dry_run(config: RunConfig, directory: Path) -> int:
    from lockstep.tasks import load_tasks

    tasks = load_tasks(config.task, config.seed)
    print(f"# {len(tasks.train)} training and {len(tasks.held_out)} held-out tasks ({tasks.mapping})")
    print(f"# would write to {directory}")
    print(configuration.to_toml(config), end="")
    return 0


def _default_directory(config: RunConfig, files: tuple[Path, ...]) -> Path:
    name = files[0].stem if files else f"{Path(config.model).name}-{Path(config.task.name).stem}"
    return Path("runs") / name


def _move_aside(directory: Path) -> None:
    if not directory.exists():
        return
    number = 1
    while (target := directory.with_name(f"{directory.name}.{number}")).exists():
        number += 1
    directory.rename(target)
    print(f"lockstep: the earlier run was moved to {target}", file=sys.stderr)
