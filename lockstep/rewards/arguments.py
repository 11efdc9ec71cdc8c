"""What a reward function is called with: the three shapes of the field, and the arguments of each.

In: the signature of a function; tasks and rollouts. Out: its shape; keyword arguments.

| shape | recognised by | called |
| --- | --- | --- |
| TRL | `completions` | once for the batch, with lists: prompts, completions, completion_ids and every column |
| verl | `solution_str`, `ground_truth` | for each rollout, with data_source and extra_info too |
| plain | `task`, `rollout` | for each rollout |

Columns are the tasks' metadata, and `answer`. They are copied for every call, because functions do write into what they
are given, and the tasks will be used again.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from lockstep.core import Rollout, Task
from lockstep.errors import InputError, message

Shape = Literal["trl", "verl", "plain"]
Arguments = dict[str, Any]

RECOGNISED_BY: tuple[tuple[Shape, frozenset[str]], ...] = (
    ("trl", frozenset({"completions"})),
    ("verl", frozenset({"solution_str", "ground_truth"})),
    ("plain", frozenset({"task", "rollout"})),
)


@dataclass(frozen=True, slots=True)
class Signature:
    """How a function is called. `takes` is None if it takes any keyword; `needs` have no default."""

    path: str
    shape: Shape
    takes: frozenset[str] | None
    needs: frozenset[str]

    @classmethod
    def of(cls, function: Callable[..., Any], path: str) -> Signature:
        """Recognise `function` by the names of its parameters. Raises `InputError` for names of no known shape."""
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):  # some functions written in C
            signature = inspect.Signature()
        parameters = signature.parameters.values()
        named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        nameless = [p for p in parameters if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]
        shape: Shape | None = next((shape for shape, names in RECOGNISED_BY if names <= named.keys()), None)
        if shape is None or nameless:
            expected = (
                "(prompts, completions, **columns), (data_source, solution_str, ground_truth, extra_info) "
                "or (task, rollout)"
            )
            rule = "a function is recognised by the names of its parameters"
            do = "Name its parameters so"
            raise InputError(message(f"reward function ({path})", rule, got=str(signature), expected=expected, do=do))
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        needs = frozenset(name for name, p in named.items() if p.default is p.empty)
        return cls(path, shape, None if takes_all else frozenset(named), needs)

    def choose(self, arguments: Arguments) -> Arguments:
        """Those of `arguments` that the function takes. Raises `InputError` if it needs one that is not there."""
        missing = sorted(self.needs - arguments.keys())
        if missing:
            raise InputError(
                message(
                    f"reward function ({self.path})",
                    "every parameter without a default is a column of the tasks",
                    got=f"{', '.join(missing)}, which no task has",
                    expected=", ".join(sorted(arguments)),
                    do="Rename the parameter, give it a default, or add the column",
                )
            )
        return arguments if self.takes is None else {k: v for k, v in arguments.items() if k in self.takes}


def columns_of(tasks: Sequence[Task]) -> list[str]:
    """The names of all columns, in the order of their first appearance."""
    return list(dict.fromkeys(name for task in tasks for name in ("answer", *task.metadata)))


def trl(tasks: Sequence[Task], rollouts: Sequence[Rollout], columns: Sequence[str]) -> Arguments:
    """TRL's lists; chats in, chats out. A column that only some tasks have is None for the others."""
    prompts = [task.prompt if isinstance(task.prompt, str) else [dict(m) for m in task.prompt] for task in tasks]
    completions = [
        rollout.text if isinstance(task.prompt, str) else [{"role": "assistant", "content": rollout.text}]
        for task, rollout in zip(tasks, rollouts, strict=True)
    ]
    token_ids = [rollout.token_ids.tolist() for rollout in rollouts]
    own = {"prompts": prompts, "completions": completions, "completion_ids": token_ids}
    return {name: [_column(task, name) for task in tasks] for name in columns} | own


def verl(task: Task, rollout: Rollout) -> Arguments:
    """The arguments of verl's `compute_score`; a ground truth of any type is passed as it is in the file."""
    reward_model = _column(task, "reward_model")
    known = isinstance(reward_model, Mapping) and "ground_truth" in reward_model
    return {
        "data_source": _column(task, "data_source"),
        "solution_str": rollout.text,
        "ground_truth": reward_model["ground_truth"] if known else task.answer,
        "extra_info": _column(task, "extra_info"),
    }


def plain(task: Task, rollout: Rollout) -> Arguments:
    """Our own nouns."""
    return {"task": replace(task, metadata=copy.deepcopy(dict(task.metadata))), "rollout": rollout}


def _column(task: Task, name: str) -> Any:
    return copy.deepcopy(task.metadata.get(name, task.answer if name == "answer" else None))
