"""From the word for an engine to the engine: which class, in which process.

In: a `Spec`, a publisher. Out: a side, entered; leaving the stack ends it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

from lockstep.adapters.engines.publisher import Publisher
from lockstep.adapters.engines.spec import Spec
from lockstep.errors import boundary


def opened(spec: Spec, publisher: Publisher, stack: ExitStack, folder: Path, announce: Callable[[str], None]) -> Any:
    """The side that `spec` names, closed with `stack`. `folder`: for its log. Raises `LockstepError`."""
    settings = dict(spec.settings)
    if spec.kind == "vllm":
        from lockstep.adapters.engines.vllm_process import Vllm

        return stack.enter_context(Vllm(publisher, settings, folder / "vllm.log", announce))
    if spec.kind == "openai":
        from lockstep.adapters.engines.endpoint import Endpoint

        return stack.enter_context(Endpoint(publisher, spec.what, settings))
    if spec.kind == "transformers":
        from lockstep.adapters.engines.transformers_scorer import Transformers

        return stack.enter_context(Transformers(publisher, settings))
    from lockstep.adapters.engines.native import NativeEngine, NativeTrainer

    return stack.enter_context((NativeEngine if spec.kind == "engine" else NativeTrainer)(publisher, settings))


def guarded(*specs: Spec | None) -> AbstractContextManager[None]:
    """Whatever software that is not ours raises is a failure of that software; our own mistakes stay ours."""
    foreign = [str(spec) for spec in specs if spec is not None and spec.kind not in ("engine", "trainer")]
    return boundary(f"engine ({', '.join(foreign)})") if foreign else nullcontext()
